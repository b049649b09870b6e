"""The life of a batch, end to end: from its input file through the store to its output and error files."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from sqlalchemy import func, select

from fabric.batches import feeder
from fabric.batches import service as module
from fabric.batches.expand import Limits
from fabric.contracts.budget import NANO, Period, window_at
from fabric.contracts.catalog import Catalog
from fabric.contracts.ids import line_job_id
from fabric.ledger import batches, files, lines, usage
from fabric.ledger.tables import batch_lines
from fabric.store import budgets, reads, transitions
from fabric.store.disk import Disk
from fabric.store.transitions import Dispatch

if TYPE_CHECKING:
    from tests.batches.conftest import Desk, Worker


def rows_of(desk: Desk) -> int:
    with desk.ledger.reading() as connection:
        return connection.execute(select(func.count()).select_from(batch_lines)).scalar_one()


class TestAWholeBatch:
    def test_every_line_comes_out_once(self, each_desk: Desk, worker: Worker, line: Any) -> None:
        desk = each_desk
        worker.start()
        with desk.serving():
            batch_id = desk.batch(
                [
                    line("good-1", "one"),
                    b"{not json",
                    line("bad-model", model="nobody"),
                    b"   ",
                    line("refused", "fail"),
                    line("good-2", "two"),
                    line("good-1", "again"),
                ]
            )
            batch = desk.wait(batch_id)
        assert (batch.status, batch.total, batch.completed, batch.failed) == ("completed", 6, 2, 4)
        assert [answer["custom_id"] for answer in desk.output(batch_id)] == ["good-1", "good-2"]
        told = [(e["custom_id"], e["error"]["line"], e["error"]["code"]) for e in desk.errors(batch_id)]
        assert told == [
            (None, 2, "invalid_json_line"),
            ("bad-model", 3, "model_not_found"),
            ("refused", 5, "engine_rejected"),
            ("good-1", 7, "duplicate_custom_id"),
        ]

    def test_an_answer_is_openais_with_the_fabrics_names(self, desk: Desk, worker: Worker, line: Any) -> None:
        worker.start()
        with desk.serving():
            batch_id = desk.batch([line("a", "hi")])
            desk.wait(batch_id)
        (answer,) = desk.output(batch_id)
        job_id = line_job_id(batch_id, 1)
        body = answer["response"]["body"]
        assert answer["id"] == f"batch_req_{job_id.removeprefix('job_')}"
        assert (answer["error"], answer["response"]["status_code"]) == (None, 200)
        assert answer["response"]["request_id"] == job_id
        assert (body["id"], body["model"]) == (f"chatcmpl-{job_id.removeprefix('job_')}", "small")
        assert body["created"] > 1_700_000_000
        assert body["choices"][0]["message"]["content"] == "You said: hi"
        assert body["usage"]["total_tokens"] == 8

    def test_an_error_says_what_the_request_would_have_got(self, desk: Desk, worker: Worker, line: Any) -> None:
        worker.start()
        with desk.serving():
            batch_id = desk.batch([line("a", "fail"), line("b", temperature=9), b"[1]"])
            desk.wait(batch_id)
        failed, refused, unreadable = desk.errors(batch_id)
        assert failed["response"]["status_code"] == 400
        assert failed["response"]["body"]["error"]["code"] == "engine_rejected"
        assert refused["response"]["body"]["error"]["param"] == refused["error"]["param"] == "temperature"
        assert unreadable["response"] is None
        assert unreadable["error"].keys() == {"code", "message", "param", "line"}

    def test_its_files_are_the_tenants(self, desk: Desk, worker: Worker, line: Any) -> None:
        worker.start()
        with desk.serving():
            batch_id = desk.batch([line("a"), line("b", "fail")], tenant="acme")
            batch = desk.wait(batch_id)
        for file_id, kind in ((batch.output_file_id, "output"), (batch.error_file_id, "error")):
            assert file_id is not None
            file = desk.ledger.read(files.get, "acme", file_id)
            assert (file.filename, file.purpose, file.lines) == (f"{batch_id}_{kind}.jsonl", "batch_output", 1)
            assert file.bytes == len(desk.content(file_id))

    def test_nothing_of_it_stays_behind(self, each_desk: Desk, worker: Worker, line: Any) -> None:
        desk = each_desk
        worker.start()
        with desk.serving():
            batch_id = desk.batch([line(f"c{n}") for n in range(300)] + [line("bad", "fail")])
            batch = desk.wait(batch_id)
            desk.until(lambda: rows_of(desk) == 0)
            desk.until(lambda: desk.store.redis.xlen(reads.COMPLETIONS) == 0)
        assert list(desk.store.redis.scan_iter("fabric:job:*")) == []
        assert list(desk.store.redis.scan_iter("fabric:payload:*")) == []
        # Its input, its output, its errors: no partial files.
        assert len(list(desk.storage.directory.iterdir())) == 3
        for stamp in (batch.in_progress_ms, batch.finalizing_ms, batch.completed_ms):
            assert stamp is not None

    def test_its_usage_is_recorded_line_by_line(self, each_desk: Desk, worker: Worker, line: Any) -> None:
        desk = each_desk
        worker.start()
        with desk.serving():
            batch_id = desk.batch([line("a"), line("b", "fail")])
            desk.wait(batch_id)
        (first,) = desk.ledger.read(usage.of_job, "default", line_job_id(batch_id, 1))
        (second,) = desk.ledger.read(usage.of_job, "default", line_job_id(batch_id, 2))
        assert (first.state, first.input_tokens, first.output_tokens, first.cost_usd) == ("succeeded", 3, 5, 0.001)
        assert (second.state, second.error_code, second.line_no) == ("failed", "engine_rejected", 2)
        assert first.priority == "batch"

    def test_base64_embeddings_come_as_asked(self, desk: Desk, worker: Worker) -> None:
        def embed(job: Any) -> Any:
            result = {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [1.0, 0.5]}]}
            return desk.succeed(job, orjson.dumps(result))

        def ask(custom_id: str, **body: Any) -> dict[str, Any]:
            fields = {"model": "vectors", "input": "words", **body}
            return {"custom_id": custom_id, "method": "POST", "url": "/v1/embeddings", "body": fields}

        worker.answer = embed
        worker.start()
        with desk.serving():
            batch_id = desk.batch([ask("packed", encoding_format="base64"), ask("plain")], endpoint="/v1/embeddings")
            desk.wait(batch_id)
        packed, plain = (answer["response"]["body"]["data"][0]["embedding"] for answer in desk.output(batch_id))
        assert (packed, plain) == ("AACAPwAAAD8=", [1.0, 0.5])


class TestFilesThatAreNoBatch:
    @pytest.mark.parametrize("counted", [True, False])
    def test_an_empty_file_fails(self, desk: Desk, counted: bool) -> None:
        with desk.serving():
            batch = desk.wait(desk.batch([b"", b"  "], counted=counted))
        assert batch.status == "failed"
        assert batch.errors is not None
        assert batch.errors[0]["code"] == "empty_file"
        assert (batch.output_file_id, batch.error_file_id) == (None, None)

    @pytest.mark.parametrize("counted", [True, False])
    def test_too_many_lines_fail_and_leave_nothing(self, desk: Desk, line: Any, counted: bool) -> None:
        with desk.serving(limits=Limits(lines=1_500)):
            batch = desk.wait(desk.batch([line(f"c{n}") for n in range(1_501)], counted=counted))
            desk.until(lambda: rows_of(desk) == 0)
        assert batch.status == "failed"
        assert batch.errors is not None
        assert batch.errors[0]["code"] == "too_many_tasks"

    def test_a_file_that_is_gone_fails(self, desk: Desk, line: Any) -> None:
        batch_id = desk.batch([line("a")])
        desk.storage.remove(desk.found(batch_id).input_file_id)
        with desk.serving():
            batch = desk.wait(batch_id)
        assert batch.status == "failed"
        assert batch.errors is not None
        assert batch.errors[0]["code"] == "file_not_found"

    def test_only_malformed_lines_complete_with_an_error_file(self, desk: Desk) -> None:
        with desk.serving():
            batch_id = desk.batch([b"{", b"[]", b"\xff\xfe"])
            batch = desk.wait(batch_id)
        assert (batch.status, batch.total, batch.failed, batch.output_file_id) == ("completed", 3, 3, None)
        assert len(desk.errors(batch_id)) == 3


class TestCancelling:
    def test_what_is_finished_stays(self, each_desk: Desk, worker: Worker, line: Any) -> None:
        desk = each_desk
        worker.chunk = 50
        worker.start()
        with desk.serving(window=400):
            batch_id = desk.batch([line(f"c{n}") for n in range(1_000)])
            desk.until(lambda: desk.found(batch_id).completed >= 100)
            worker.go.clear()
            desk.cancel(batch_id)
            batch = desk.wait(batch_id)
        assert batch.status == "cancelled"
        assert batch.cancelled_ms is not None
        answers, errors = desk.output(batch_id), desk.errors(batch_id)
        assert len(answers) == batch.completed >= 100
        assert len(errors) == batch.failed > 0
        assert {line["custom_id"] for line in answers + errors} == {f"c{n}" for n in range(1_000)}
        assert {e["error"]["code"] for e in errors} == {"batch_cancelled"}
        assert {e["response"] is None for e in errors} == {True}

    def test_its_jobs_leave_the_store(self, desk: Desk, worker: Worker, line: Any) -> None:
        with desk.serving():
            batch_id = desk.batch([line(f"c{n}") for n in range(50)])
            desk.until(lambda: desk.store(reads.live_count()) == 50)
            desk.cancel(batch_id)
            desk.wait(batch_id)
        assert desk.store(reads.live_count()) == 0

    def test_before_its_lines_are_read(self, desk: Desk, line: Any) -> None:
        batch_id = desk.batch([line("a")])
        desk.cancel(batch_id)
        with desk.serving():
            batch = desk.wait(batch_id)
        assert (batch.status, batch.total, batch.output_file_id, batch.error_file_id) == ("cancelled", 0, None, None)

    def test_while_its_lines_are_read(self, desk: Desk, line: Any) -> None:
        batch_id = desk.batch([line(f"c{n}") for n in range(3_500)])
        service = desk.service()
        service.round()
        assert rows_of(desk) > 0
        desk.cancel(batch_id)
        desk.drive(lambda: desk.found(batch_id).status == "cancelled", service.round)
        desk.drive(lambda: rows_of(desk) == 0, service.round)
        assert desk.found(batch_id).total == 0

    def test_a_job_that_runs_is_waited_for(self, desk: Desk, worker: Worker, line: Any) -> None:
        """It is stopped in its engine, and its worker says how it ended."""
        batch_id = desk.batch([line("a"), line("b")])
        service, recorder = desk.service(), desk.recorder()
        desk.drive(lambda: desk.store(reads.live_count()) == 2, service.round)
        (lane,) = desk.store.redis.smembers("fabric:lanes")
        (taken,) = desk.store(transitions.take([(lane.decode(), 1)]))
        desk.store(transitions.dispatch([Dispatch(taken.spec.id, "small-cpu", "cpu", b"{}")]))
        (claimed,) = desk.store(transitions.claim("w1", [(taken.spec.id, 1)]))
        desk.cancel(batch_id)
        service.round()
        assert desk.found(batch_id).status == "cancelling"
        desk.store(transitions.commit([desk.succeed(claimed, b'{"choices":[]}')]))
        desk.drive(lambda: desk.found(batch_id).open == 0, recorder.step)
        desk.drive(lambda: desk.found(batch_id).status == "cancelled", service.round)
        assert [a["custom_id"] for a in desk.output(batch_id)] == [claimed.spec.custom_id]
        assert [e["error"]["code"] for e in desk.errors(batch_id)] == ["batch_cancelled"]

    def test_between_two_looks(self, desk: Desk, line: Any) -> None:
        """The service still believes that the batch runs, and that its time is over."""
        batch_id = desk.batch([line("a")])
        service = desk.service()
        desk.drive(lambda: desk.found(batch_id).status == "in_progress", service.round)
        desk.cancel(batch_id)
        assert desk.ledger.write(module._finalize, batch_id, 1) is False
        assert desk.ledger.read(lines.counts, batch_id) == {"open": 1}


class TestExpiring:
    def test_open_lines_go_to_the_error_file(self, each_desk: Desk, worker: Worker, line: Any) -> None:
        desk = each_desk
        now = {"ahead": 0}
        worker.start()
        with desk.serving(window=20, now_ms=lambda: int(time.time() * 1000) + now["ahead"], homecoming_ms=200):
            batch_id = desk.batch([line(f"c{n}") for n in range(500)])
            desk.until(lambda: desk.found(batch_id).completed >= 20)
            worker.go.clear()
            now["ahead"] = 86_400_000
            batch = desk.wait(batch_id)
        assert (batch.status, batch.expired_ms is not None) == ("expired", True)
        answers, errors = desk.output(batch_id), desk.errors(batch_id)
        assert len(answers) + len(errors) == 500
        assert len(answers) == batch.completed
        assert {e["error"]["code"] for e in errors} == {"batch_expired"}

    def test_jobs_that_the_store_expired_count_as_the_batchs_end(self, desk: Desk, line: Any) -> None:
        batch_id = desk.batch([line("a"), line("b")], window_ms=400)
        service, recorder = desk.service(homecoming_ms=60_000), desk.recorder()
        desk.drive(lambda: desk.store(reads.live_count()) == 2, service.round)
        desk.until(lambda: desk.store(transitions.expire()) == 2)
        desk.drive(lambda: desk.found(batch_id).open == 0, recorder.step)
        desk.drive(lambda: desk.found(batch_id).status == "expired", service.round)
        assert {e["error"]["code"] for e in desk.errors(batch_id)} == {"batch_expired"}

    def test_a_lines_own_deadline_is_its_own_error(self, desk: Desk, line: Any) -> None:
        batch_id = desk.batch([line("a", fabric={"deadline_s": 0.05})])
        service, recorder = desk.service(), desk.recorder()
        desk.drive(lambda: desk.store(reads.live_count()) == 1, service.round)
        desk.until(lambda: desk.store(transitions.expire()) == 1)
        desk.drive(lambda: desk.found(batch_id).open == 0, recorder.step)
        desk.drive(lambda: desk.found(batch_id).status == "completed", service.round)
        (error,) = desk.errors(batch_id)
        assert error["error"]["code"] == "deadline_exceeded"
        assert error["response"]["status_code"] == 504


def with_ten_dollars(catalog: Catalog, window: Period = "total") -> Catalog:
    """A dollar for each token of an answer, and a budget of ten for each window."""
    models = catalog.model_dump()["models"]
    for model in models:
        for deployment in model["deployments"]:
            deployment["price"] = {"output_per_million": 1e6}
    budget = {"name": "small", "usd": 10, "window": window}
    return Catalog.model_validate({"models": models, "budgets": [budget]})


class TestFeeding:
    def test_the_window_bounds_what_is_in_the_store(self, desk: Desk, line: Any) -> None:
        desk.batch([line(f"c{n}") for n in range(1_000)])
        service = desk.service(window=100)
        for _ in range(20):
            service.round()
        assert desk.store(reads.live_count()) == 100

    def test_a_second_tenant_isnt_locked_out(self, desk: Desk, line: Any) -> None:
        first = desk.batch([line(f"c{n}") for n in range(1_000)])
        service = desk.service(window=100)
        for _ in range(10):
            service.round()
        second = desk.batch([line(f"c{n}") for n in range(1_000)], tenant="other")
        for _ in range(10):
            service.round()
        hands = desk.ledger.read(lines.in_hand)
        assert hands == {first: 100, second: 50}

    def test_lines_go_with_what_the_batch_and_they_say(self, desk: Desk, line: Any) -> None:
        options = {"privacy": "restricted", "priority": "interactive", "tags": ["x"], "max_cost_usd": 0.5}
        batch_id = desk.batch([line("a"), line("b", fabric=options)])
        service = desk.service()
        desk.drive(lambda: desk.store(reads.live_count()) == 2, service.round)
        plain, special = (desk.store(reads.job(line_job_id(batch_id, n))) for n in (1, 2))
        assert plain is not None
        assert special is not None
        expires_ms = desk.found(batch_id).expires_ms
        assert (plain.spec.priority, plain.spec.privacy, plain.spec.deadline_ms) == ("batch", "internal", expires_ms)
        assert (plain.spec.batch_id, plain.spec.line_no, plain.spec.custom_id) == (batch_id, 1, "a")
        assert (special.spec.priority, special.spec.privacy) == ("interactive", "restricted")
        assert (special.spec.tags, special.spec.max_cost_usd) == (("x",), 0.5)

    def test_feeding_twice_makes_one_job(self, desk: Desk, line: Any) -> None:
        desk.batch([line(f"c{n}") for n in range(300)])
        service = desk.service()
        desk.drive(lambda: desk.store(reads.live_count()) == 300, service.round)
        desk.ledger.write(batches.unfed, list(desk.ledger.read(lines.in_hand)))
        for _ in range(5):
            service.round()
        assert desk.store(reads.live_count()) == 300
        assert sum(desk.ledger.read(lines.in_hand).values()) == 300

    def test_a_model_that_has_gone_fails_its_lines(self, desk: Desk, line: Any) -> None:
        batch_id = desk.batch([line("a"), line("b")])
        service = desk.service(window=0)
        desk.drive(lambda: desk.found(batch_id).status == "in_progress", service.round)
        desk.store.redis.flushall()
        desk.ledger.write(batches.unfed, [batch_id])
        desk.catalog = Catalog(models=desk.catalog.models[1:])
        changed = desk.service()
        desk.drive(lambda: desk.found(batch_id).status == "completed", changed.round)
        assert {e["error"]["code"] for e in desk.errors(batch_id)} == {"model_not_found"}

    def test_a_rule_that_denies_fails_the_lines_that_it_is_true_of(self, desk: Desk, line: Any) -> None:
        rule = {"when": '"far" in tags', "deny": "Not from batches."}
        desk.catalog = Catalog.model_validate({**desk.catalog.model_dump(), "rules": [rule]})
        batch_id = desk.batch([line("a", fabric={"tags": ["far"]}), line("b")])
        desk.drive(lambda: desk.found(batch_id).failed == 1, desk.service().round)
        assert desk.store(reads.live_count()) == 1, "the other one waits for its place"

    def test_a_full_store_is_tried_again(self, desk: Desk, line: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        real = transitions.accept
        batch_id = desk.batch([line(f"c{n}") for n in range(200)])
        service = desk.service()
        with monkeypatch.context() as full:
            full.setattr(feeder.transitions, "accept", lambda jobs: real(jobs, limit=40))
            desk.drive(lambda: desk.store(reads.live_count()) == 40, service.round)
            service.round()
            assert desk.found(batch_id).fed_until == 0
        desk.drive(lambda: desk.found(batch_id).fed_until == 200, service.round)
        assert desk.store(reads.live_count()) == 200

    def test_lines_wait_for_room_in_their_budget(self, desk: Desk, line: Any) -> None:
        desk.catalog = with_ten_dollars(desk.catalog)
        desk.store(budgets.open_([budgets.Opening("small", "total", None, spent=NANO)]))
        batch_id = desk.batch([line(f"c{n}", max_tokens=2) for n in range(6)])
        service = desk.service()
        desk.drive(lambda: desk.store(reads.live_count()) == 4, service.round)
        service.round()
        assert (desk.found(batch_id).status, desk.store(reads.live_count())) == ("in_progress", 4)
        ids = [line_job_id(batch_id, number) for number in (1, 2)]
        desk.store(transitions.cancel(ids))
        desk.drive(lambda: desk.store(reads.live_count()) == 4, service.round)
        assert desk.store(budgets.balances([("small", "total")])) == [budgets.Balance(8 * NANO, NANO)]

    def test_lines_fail_when_their_budget_is_spent_until_after_their_batch(self, desk: Desk, line: Any) -> None:
        desk.catalog = with_ten_dollars(desk.catalog)
        desk.store(budgets.open_([budgets.Opening("small", "total", None, spent=9 * NANO)]))
        batch_id = desk.batch([line("dear", max_tokens=2), line("cheap", max_tokens=1), line("dear too", max_tokens=3)])
        service = desk.service()
        desk.drive(lambda: desk.found(batch_id).failed == 2, service.round)
        assert desk.store(reads.live_count()) == 1, "the cheap one runs"
        desk.store(transitions.cancel([line_job_id(batch_id, 2)]))
        recorder = desk.recorder()
        desk.drive(lambda: desk.found(batch_id).open == 0, recorder.step)
        desk.drive(lambda: desk.found(batch_id).status == "completed", service.round)
        told = [error for error in desk.errors(batch_id) if error["custom_id"] != "cheap"]
        assert {(e["error"]["code"], e["response"]["status_code"]) for e in told} == {("budget_exceeded", 402)}
        assert "$1.000000 are left to spend" in told[0]["error"]["message"]

    def test_lines_wait_for_the_next_window_where_it_begins_in_time(self, desk: Desk, line: Any) -> None:
        desk.catalog = with_ten_dollars(desk.catalog, "day")
        now = window_at("day", time.time_ns() // 1_000_000)
        desk.store(budgets.open_([budgets.Opening("small", now.name, now.end_ms, spent=10 * NANO)]))
        batch_id = desk.batch([line("dear", max_tokens=2)], window_ms=2 * 86_400_000)
        service = desk.service()
        desk.drive(lambda: desk.found(batch_id).status == "in_progress", service.round)
        service.round()
        assert (desk.found(batch_id).failed, desk.store(reads.live_count())) == (0, 0)

    def test_a_line_that_no_window_has_room_for_fails_and_the_others_go_on(
        self, desk: Desk, worker: Worker, line: Any
    ) -> None:
        desk.catalog = with_ten_dollars(desk.catalog)
        desk.store(budgets.open_([budgets.Opening("small", "total", None)]))
        worker.start()
        with desk.serving():
            batch_id = desk.batch([line("c0", max_tokens=2), line("dear", max_tokens=11), line("c2", max_tokens=2)])
            batch = desk.wait(batch_id)
        assert (batch.completed, batch.failed) == (2, 1)
        (error,) = desk.errors(batch_id)
        assert (error["custom_id"], error["error"]["code"]) == ("dear", "budget_exceeded")
        assert error["response"]["status_code"] == 402
        (left,) = desk.store(budgets.balances([("small", "total")]))
        assert left is not None
        assert left.reserved == 0


class TestManyBatches:
    def test_they_go_on_beside_each_other(self, each_desk: Desk, worker: Worker, line: Any) -> None:
        desk = each_desk
        worker.start()
        with desk.serving(window=60):
            ids = [desk.batch([line(f"c{n}") for n in range(40)], tenant=f"t{b % 3}") for b in range(12)]
            ended = [desk.wait(batch_id) for batch_id in ids]
        assert {(batch.status, batch.completed) for batch in ended} == {("completed", 40)}

    def test_one_that_cant_go_on_doesnt_hold_up_the_others(
        self, desk: Desk, worker: Worker, line: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        worker.start()
        stuck = desk.batch([line("a", "a secret prompt")])
        service = desk.service(window=0)
        desk.drive(lambda: desk.found(stuck).status == "in_progress", service.round)
        desk.storage.remove(desk.found(stuck).input_file_id)
        with desk.serving():
            fine = desk.batch([line("b")])
            assert desk.wait(fine).status == "completed"
        assert desk.found(stuck).status == "in_progress"
        assert stuck in caplog.text
        assert "secret" not in caplog.text


class _Told(Disk):
    """Low until it is told otherwise."""

    room = threading.Event()

    def is_low(self) -> bool:
        return not self.room.is_set()


def test_nothing_new_is_fed_while_the_disk_has_little_room(desk: Desk, worker: Worker, line: Any) -> None:
    disk = _Told(Path("/"), 1)
    disk.room.clear()
    worker.start()
    with desk.serving(disk=disk, look_s=0.05):
        batch_id = desk.batch([line("a"), line("b")])
        desk.wait(batch_id, "in_progress")
        other = desk.batch([b"{not json"])  # one that needs no room comes to its end meanwhile
        desk.wait(other)
        assert desk.store(reads.state(line_job_id(batch_id, 1))) is None
        disk.room.set()
        assert desk.wait(batch_id).completed == 2
