"""The recorder: each completion has one effect, whoever dies and however often it is read."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from fabric import recorder as module
from fabric.contracts.errors import EngineError, Unavailable
from fabric.contracts.job import JobSpec, JobState, Measures, Usage
from fabric.contracts.job_seals import HomeSeals
from fabric.contracts.secret import Secrets
from fabric.ledger import Ledger, costs, usage
from fabric.ledger.costs import Filter
from fabric.recorder import BAD, GROUP, Recorder
from fabric.store import Store, counts, reads, transitions
from fabric.store.transitions import Dispatch, Failure, NewJob, Outcome

if TYPE_CHECKING:
    from tests.recorder.conftest import Ended


SECRETS = Secrets(["s" * 32])
HOME = HomeSeals(SECRETS)


def drain(recorder: Recorder) -> int:
    total = 0
    while count := recorder.step():
        total += count
    return total


class TestUsage:
    def test_of_every_job_that_ended(self, ended: Ended, recorder: Recorder, ledger: Ledger) -> None:
        done, failed = ended.job(tenant="acme", tags=("a",)), ended.job(JobState.FAILED, tenant="acme")
        assert drain(recorder) == 2
        (used,) = ledger.read(usage.of_job, "acme", done)
        assert (used.state, used.tier, used.deployment, used.worker) == ("succeeded", "cpu", "small-cpu", "w1")
        assert (used.input_tokens, used.output_tokens, used.cost_usd) == (3, 4, 0.01)
        (used,) = ledger.read(usage.of_job, "acme", failed)
        assert (used.state, used.error_code, used.fault) == ("failed", "engine_error", "engine")

    def test_the_store_is_told(self, ended: Ended, recorder: Recorder, store: Store) -> None:
        job = ended.job()
        assert store(reads.open_jobs("default", before_ms=None, limit=9)) == [job]
        drain(recorder)
        assert store(reads.open_jobs("default", before_ms=None, limit=9)) == []
        # It stays readable for a while.
        assert store(reads.state(job)) is JobState.SUCCEEDED
        assert ended.stream() == 0

    def test_of_a_job_that_never_ran(self, ended: Ended, recorder: Recorder, ledger: Ledger, store: Store) -> None:
        spec = JobSpec(id=f"job_{0:026}", endpoint="/v1/chat/completions", model="small")
        store(transitions.accept([NewJob(spec, b"sealed")]))
        store(transitions.cancel([spec.id]))
        drain(recorder)
        (used,) = ledger.read(usage.of_job, "default", spec.id)
        assert (used.state, used.attempt, used.deployment) == ("cancelled", 0, None)

    def test_of_a_job_that_ended_while_it_waited_for_its_next_try(
        self, ended: Ended, recorder: Recorder, ledger: Ledger, store: Store
    ) -> None:
        spec = JobSpec(id=f"job_{0:026}", endpoint="/v1/chat/completions", model="small")
        store(transitions.accept([NewJob(spec, b"sealed")]))
        store(transitions.take([(spec.lane, 1)]))
        store(transitions.dispatch([Dispatch(spec.id, "small-cpu", "cpu", b"{}")]))
        store(transitions.claim("w1", [(spec.id, 1)]))
        measures = Measures(usage=Usage(3, 4), cost_usd=0.01).dump()
        error = EngineError("It broke.").info
        store(transitions.fail([Failure(spec.id, 1, 60_000, error, measures=measures, cost_usd=0.01)]))
        store(transitions.cancel([spec.id]))
        drain(recorder)
        (used,) = ledger.read(usage.of_job, "default", spec.id)
        assert (used.state, used.attempt, used.requests, used.error_code) == ("cancelled", 1, 1, "cancelled")
        assert (used.deployment, used.worker, used.output_tokens, used.cost_usd) == ("small-cpu", "w1", 4, 0.01)
        (sums,) = ledger.read(costs.grouped, Filter(), ())[0]
        assert (sums["requests"], sums["failures"], sums["attempts"], sums["cost_usd"]) == (1, 1, 1, 0.01)


class TestLines:
    def test_an_answer_becomes_a_line_of_the_output(self, ended: Ended, recorder: Recorder, store: Store) -> None:
        ended.batch(1)
        job = ended.line(1, result=b'{"choices":[{"index":0}]}')
        drain(recorder)
        (line,) = ended.outcomes()
        assert line.response is not None
        told = orjson.loads(HOME.opened_line("batch_1", line.line_no, line.response))
        assert (line.state, told["custom_id"], told["error"]) == ("completed", "c1", None)
        assert told["response"]["request_id"] == job
        assert told["response"]["body"]["choices"] == [{"index": 0}]
        assert (ended.found().completed, ended.found().failed) == (1, 0)
        assert store(reads.exist([job])) == 0

    def test_an_error_becomes_a_line_of_the_error_file(self, ended: Ended, recorder: Recorder) -> None:
        ended.batch(1)
        ended.line(1, JobState.FAILED)
        drain(recorder)
        (line,) = ended.outcomes()
        assert line.error is not None
        told = orjson.loads(line.error)
        assert (line.state, told["error"]["code"], told["error"]["line"]) == ("failed", "engine_error", 1)
        assert told["response"]["status_code"] == 502
        assert (ended.found().completed, ended.found().failed) == (0, 1)

    def test_a_parked_line_has_failed_for_good(self, ended: Ended, recorder: Recorder, store: Store) -> None:
        ended.batch(1)
        job = ended.line(1, JobState.DEAD)
        drain(recorder)
        assert store(reads.parked(limit=9)) == [job]  # still there to be looked at and replayed
        store(transitions.replay([job]))
        record = store(reads.job(job))
        assert record is not None
        attempt = ended.run(record.spec)
        store(transitions.commit([Outcome(job, attempt, JobState.SUCCEEDED, b"{}")]))
        drain(recorder)
        assert [line.state for line in ended.outcomes()] == ["failed"]
        assert (ended.found().completed, ended.found().failed) == (0, 1)

    def test_of_a_batch_that_is_gone(self, ended: Ended, recorder: Recorder, ledger: Ledger) -> None:
        job = ended.line(1, batch_id="batch_9")
        assert drain(recorder) == 1
        assert len(ledger.read(usage.of_job, "default", job)) == 1

    def test_the_batch_service_is_called_once_per_round(self, ended: Ended, store: Store, ledger: Ledger) -> None:
        calls: list[int] = []
        recorder = Recorder(store, ledger, HOME, recorded=lambda: calls.append(1))
        ended.batch(3)
        ended.job()
        drain(recorder)
        assert calls == []
        for number in (1, 2, 3):
            ended.line(number)
        recorder.step()
        assert calls == [1]


class TestCrashes:
    def test_what_a_dead_recorder_held_is_taken_over(self, ended: Ended, recorder: Recorder, store: Store) -> None:
        ended.batch(3)
        for number in (1, 2, 3):
            ended.line(number)
        dead = Recorder(store, recorder._ledger, HOME)
        assert len(dead._read(1)) == 3
        assert drain(recorder) == 3
        assert ended.found().completed == 3

    def test_killed_after_the_commit(self, ended: Ended, recorder: Recorder, store: Store, ledger: Ledger) -> None:
        ended.batch(2)
        jobs = [ended.line(1), ended.line(2, JobState.FAILED)]
        dead = Recorder(store, ledger, HOME)
        dead._write(dead._read(1))
        assert drain(recorder) == 2
        assert (ended.found().completed, ended.found().failed) == (1, 1)
        assert [len(ledger.read(usage.of_job, "default", job)) for job in jobs] == [1, 1]
        assert store(reads.exist(jobs)) == 0
        assert ended.stream() == 0

    def test_killed_after_the_commit_counts_nothing_twice(
        self, ended: Ended, recorder: Recorder, store: Store, ledger: Ledger
    ) -> None:
        for _ in range(3):
            ended.job(tags=("a",))
        dead = Recorder(store, ledger, HOME)
        dead._write(dead._read(1))
        ended.job(tags=("a",))
        assert drain(recorder) == 4
        for which in (Filter(), Filter(tag="a")):
            ((row,), _) = ledger.read(costs.grouped, which)
            assert (row["requests"], row["output_tokens"], round(row["cost_usd"], 9)) == (4, 16, 0.04)
        totals = store(counts.totals())
        assert (totals["jobs", "cpu", "small-cpu", "succeeded"], totals["cost", "cpu", "small-cpu"]) == (4, 0.04)

    def test_a_store_that_was_emptied_gets_its_group_again(
        self, ended: Ended, recorder: Recorder, store: Store
    ) -> None:
        ended.job()
        assert drain(recorder) == 1
        store.redis.flushall()
        ended.job()
        assert drain(recorder) == 1

    def test_a_ledger_that_is_away_is_waited_for(
        self, ended: Ended, recorder: Recorder, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tries = threading.Semaphore(0)
        back = threading.Event()
        real = ledger.write

        def write(*args: Any, **kwargs: Any) -> Any:
            tries.release()
            if not back.is_set():
                raise Unavailable("The ledger is away.")
            return real(*args, **kwargs)

        ended.batch(1)
        ended.line(1)
        monkeypatch.setattr(ledger, "write", write)
        stop = threading.Event()
        thread = threading.Thread(target=recorder.run, args=(stop,))
        thread.start()
        assert tries.acquire(timeout=30)
        assert tries.acquire(timeout=30)
        back.set()
        assert tries.acquire(timeout=30)
        stop.set()
        thread.join(30)
        assert ended.found().completed == 1

    def test_one_that_leaves_is_forgotten_unless_it_holds_something(
        self, ended: Ended, store: Store, ledger: Ledger
    ) -> None:
        tidy, holding = Recorder(store, ledger, HOME), Recorder(store, ledger, HOME)
        ended.job()
        tidy.step()
        ended.job()
        holding._read(1)
        stopped = threading.Event()
        stopped.set()
        tidy.run(stopped)
        holding.run(stopped)
        names = [reader["name"].decode() for reader in store.redis.xinfo_consumers(reads.COMPLETIONS, GROUP)]
        assert names == [holding.name]

    def test_readers_that_died_long_ago_are_forgotten(
        self, ended: Ended, store: Store, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "_FORGET_READER_MS", -1)
        dead, holding, live = (Recorder(store, ledger, HOME) for _ in range(3))
        dead.step()
        ended.job()
        holding._read(1)
        live.step()
        names = [reader["name"].decode() for reader in store.redis.xinfo_consumers(reads.COMPLETIONS, GROUP)]
        assert set(names) == {holding.name, live.name}

    def test_two_share_the_work(self, ended: Ended, store: Store, ledger: Ledger) -> None:
        ended.batch(40)
        for number in range(1, 41):
            ended.line(number)
        one, two = Recorder(store, ledger, HOME), Recorder(store, ledger, HOME)
        counts = [one.step(), two.step(), one.step(), two.step()]
        assert sum(counts) == 40
        assert all(counts[:2])
        assert ended.found().completed == 40


class TestEntriesThatCantBeRecorded:
    def test_nonsense_is_set_aside(
        self, ended: Ended, recorder: Recorder, store: Store, caplog: pytest.LogCaptureFixture
    ) -> None:
        ended.batch(2)
        ended.line(1)
        store.redis.xadd(reads.COMPLETIONS, {"spec": b"\xff a secret", "state": "succeeded"})
        ended.line(2)
        assert drain(recorder) == 3
        assert ended.found().completed == 2
        ((_, kept),) = store.redis.xrange(BAD)
        assert kept[b"spec"] == b"\xff a secret"
        assert ended.stream() == 0
        assert "secret" not in caplog.text

    def test_values_that_the_database_refuses_hurt_only_themselves(
        self, ended: Ended, recorder: Recorder, store: Store
    ) -> None:
        ended.batch(20)
        for number in range(1, 20):
            ended.line(number)
            if number == 7:
                ((_, fields),) = store.redis.xrevrange(reads.COMPLETIONS, count=1)
                store.redis.xadd(reads.COMPLETIONS, fields | {b"finished_ms": str(2**70)})
        assert drain(recorder) == 20
        assert ended.found().completed == 19
        assert store.redis.xlen(BAD) == 1

    def test_only_the_newest_are_kept(self, recorder: Recorder, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_BAD_KEPT", 10)
        for _ in range(500):
            store.redis.xadd(reads.COMPLETIONS, {"no": "sense"})
        assert drain(recorder) == 500
        # The stream is trimmed by whole nodes of it.
        assert store.redis.xlen(BAD) <= 200


def test_large_answers_are_read_a_few_at_a_time(
    ended: Ended, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_READ_BYTES", 40_000)
    ended.batch(40)
    for number in range(1, 41):
        ended.line(number, result=b'{"x":"%s"}' % (b"y" * 10_000))
    counts = []
    while count := recorder.step():
        counts.append(count)
    assert counts[0] == 16
    assert max(counts[1:]) <= 4
    assert ended.found().completed == 40
