"""``/v1/jobs``: submit, look, list, cancel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from fabric.contracts.completion import Completion
from fabric.contracts.ids import new_id
from fabric.contracts.job import JobSpec, JobState, Measures
from fabric.contracts.worker import WorkerInfo
from fabric.ledger import usage
from fabric.store import Store, reads, transitions
from fabric.store.transitions import NewJob

if TYPE_CHECKING:
    import httpx

    from fabric.gateway import GatewaySettings
    from tests.gateway.conftest import Served, Worker

CHAT = "/v1/chat/completions"


def chat(text: str = "hi", **fields: Any) -> dict[str, Any]:
    return {"model": "small", "messages": [{"role": "user", "content": text}], **fields}


def submit(http: httpx.Client, text: str = "hi", **fields: Any) -> dict[str, Any]:
    answer = http.post("/v1/jobs", json={"endpoint": CHAT, "body": chat(text), **fields})
    assert answer.status_code == 202, answer.text
    job: dict[str, Any] = answer.json()
    return job


def show(http: httpx.Client, job_id: str) -> dict[str, Any]:
    answer = http.get(f"/v1/jobs/{job_id}")
    assert answer.status_code == 200, answer.text
    job: dict[str, Any] = answer.json()
    return job


def ended(http: httpx.Client, job_id: str) -> dict[str, Any]:
    """Waits for the job's end as users do."""
    assert http.get(f"/v1/jobs/{job_id}/events").status_code == 200
    return show(http, job_id)


class TestSubmit:
    def test_it_is_accepted_at_once(self, http: httpx.Client, store: Store) -> None:
        job = submit(http, fabric={"privacy": "public", "tags": ["t"]})
        assert (job["object"], job["state"], job["endpoint"], job["model"]) == ("job", "queued", CHAT, "small")
        assert (job["privacy"], job["priority"], job["tags"]) == ("public", "standard", ["t"])
        assert (job["result"], job["error"], job["usage"], job["cost_usd"]) == (None, None, None, None)
        assert store(reads.state(job["id"])) is JobState.QUEUED

    def test_its_result_is_kept(self, worker: Worker, http: httpx.Client) -> None:
        job = ended(http, submit(http, "hello")["id"])
        assert job["state"] == "succeeded"
        assert job["result"]["choices"][0]["message"]["content"] == "hello"
        assert job["result"]["id"] == job["id"].replace("job_", "chatcmpl-")
        assert (job["usage"]["input_tokens"], job["usage"]["output_tokens"]) == (3, 2)
        assert job["cost_usd"] == pytest.approx(0.000002)
        assert job["decision"]["plan"][0]["deployment"] == "small-cpu"
        (attempt,) = job["attempts"]
        assert (attempt["number"], attempt["deployment"], attempt["tier"]) == (1, "small-cpu", "cpu")
        assert attempt["outcome"] == "succeeded"
        assert job["accepted_ms"] <= attempt["dispatched_ms"] <= attempt["claimed_ms"] <= job["finished_ms"]

    def test_a_streamed_one_is_put_together(self, worker: Worker, http: httpx.Client) -> None:
        whole = ended(http, submit(http, "hello")["id"])["result"]
        body = {"endpoint": CHAT, "body": chat("hello", stream=True)}
        streamed = ended(http, http.post("/v1/jobs", json=body).json()["id"])["result"]
        assert streamed["choices"][0]["message"] == whole["choices"][0]["message"]
        assert (streamed["object"], streamed["usage"]["total_tokens"]) == (whole["object"], 5)

    def test_so_is_its_error(self, worker: Worker, http: httpx.Client) -> None:
        worker.act = lambda job: job.fail()
        job = ended(http, submit(http)["id"])
        assert (job["state"], job["result"]) == ("failed", None)
        assert (job["error"]["code"], job["error"]["fault"]) == ("engine_error", "engine")

    @pytest.mark.parametrize(
        ("endpoint", "body"),
        [
            ("/v1/completions", {"model": "small", "prompt": "x"}),
            ("/v1/embeddings", {"model": "small", "input": ["a", "b"]}),
        ],
    )
    def test_every_endpoint(self, worker: Worker, http: httpx.Client, endpoint: str, body: dict[str, Any]) -> None:
        accepted = http.post("/v1/jobs", json={"endpoint": endpoint, "body": body}).json()
        job = ended(http, accepted["id"])
        assert (job["state"], job["result"]["model"]) == ("succeeded", "small")

    def test_options_may_stand_in_the_body_but_not_twice(self, http: httpx.Client) -> None:
        inside = {"endpoint": CHAT, "body": chat(fabric={"priority": "batch"})}
        assert http.post("/v1/jobs", json=inside).json()["priority"] == "batch"
        assert http.post("/v1/jobs", json={**inside, "fabric": {}}).status_code == 400

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({}, "endpoint"),
            ({"endpoint": "/v1/nope", "body": {}}, "endpoint"),
            ({"endpoint": CHAT}, "body"),
            ({"endpoint": CHAT, "body": []}, "body"),
            ({"endpoint": CHAT, "body": chat(temperature=9)}, "body.temperature"),
            ({"endpoint": CHAT, "body": chat(), "other": 1}, "other"),
            ({"endpoint": CHAT, "body": chat(), "fabric": {"nope": 1}}, "fabric.nope"),
            (
                {
                    "endpoint": "/v1/embeddings",
                    "body": {"model": "small", "input": "a", "encoding_format": "base64"},
                },
                "body.encoding_format",
            ),
        ],
    )
    def test_a_wrong_field_is_named(self, http: httpx.Client, body: dict[str, Any], param: str) -> None:
        refused = http.post("/v1/jobs", json=body)
        assert refused.status_code == 400, refused.text
        assert refused.json()["error"]["param"] == param

    def test_an_unknown_model(self, http: httpx.Client) -> None:
        refused = http.post("/v1/jobs", json={"endpoint": CHAT, "body": chat() | {"model": "nope"}})
        assert (refused.status_code, refused.json()["error"]["param"]) == (404, "body.model")

    def test_more_than_the_fabric_takes(
        self, settings: GatewaySettings, serve: Callable[[GatewaySettings], Served]
    ) -> None:
        with serve(replace(settings, live_limit=1)).http() as http:
            submit(http)
            refused = http.post("/v1/jobs", json={"endpoint": CHAT, "body": chat()})
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "backlog_full")
        assert int(refused.headers["retry-after"]) > 0
        assert "x-should-retry" not in refused.headers


class TestPlaceInTheQueue:
    def test_without_workers_there_is_a_place_and_no_time(self, http: httpx.Client) -> None:
        jobs = [submit(http)["id"] for _ in range(3)]
        urgent = submit(http, fabric={"priority": "interactive"})["id"]
        assert [show(http, job)["queue_position"] for job in [urgent, *jobs]] == [0, 1, 2, 3]
        assert [show(http, job)["eta_s"] for job in jobs] == [None] * 3

    def test_with_workers_there_is_a_time(self, http: httpx.Client, store: Store) -> None:
        cores = {"small-cpu": 4}
        info = WorkerInfo("w1", "cpu", "host", 1, 0, cores, {"small-cpu": 8}, {})
        store(transitions.heartbeat(info, [], ttl_s=600))
        store.redis.hset("fabric:pace", "small-cpu", "4")
        job = submit(http)
        assert (job["queue_position"], job["eta_s"]) == (0, 4 / 8)

    def test_a_job_that_runs_has_none(self, by_hand: Worker, http: httpx.Client) -> None:
        job = submit(http)
        by_hand.next()
        shown = show(http, job["id"])
        assert (shown["state"], shown["queue_position"], shown["eta_s"]) == ("running", None, None)


class TestCancel:
    def test_a_waiting_job(self, http: httpx.Client) -> None:
        job = http.post(f"/v1/jobs/{submit(http)['id']}/cancel").json()
        assert (job["state"], job["error"]["code"]) == ("cancelled", "cancelled")

    def test_a_running_job(self, by_hand: Worker, http: httpx.Client) -> None:
        job_id = submit(http)["id"]
        running = by_hand.next()
        assert http.post(f"/v1/jobs/{job_id}/cancel").json()["state"] == "running"
        assert by_hand.stopped() == job_id
        running.cancelled()
        assert show(http, job_id)["state"] == "cancelled"

    def test_an_ended_job_stays_as_it_is(self, worker: Worker, http: httpx.Client) -> None:
        job = ended(http, submit(http)["id"])
        assert http.post(f"/v1/jobs/{job['id']}/cancel").json() == job


class TestWhoMayLook:
    @pytest.mark.parametrize(
        ("method", "path"),
        [("GET", ""), ("GET", "/events"), ("POST", "/cancel")],
    )
    @pytest.mark.parametrize("job_id", ["job_00000000000000000000000000", "nope", "job_1", "%00", "a%0Ab"])
    def test_unknown_jobs(self, http: httpx.Client, method: str, path: str, job_id: str) -> None:
        refused = http.request(method, f"/v1/jobs/{job_id}{path}")
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "not_found")

    @pytest.mark.parametrize(("method", "path"), [("GET", ""), ("GET", "/events"), ("POST", "/cancel")])
    def test_another_tenants_job_is_unknown(self, http: httpx.Client, store: Store, method: str, path: str) -> None:
        spec = JobSpec(id=new_id("job"), endpoint=CHAT, model="small", tenant="other")
        store(transitions.accept([NewJob(spec, b"")]))
        assert http.request(method, f"/v1/jobs/{spec.id}{path}").status_code == 404
        assert store(reads.state(spec.id)) is JobState.QUEUED
        assert http.get("/v1/jobs").json()["data"] == []


def record(gateway: Served, store: Store, job_id: str) -> None:
    """As the recorder does: the ledger takes over, and the record's time runs out."""
    found = store(reads.job(job_id))
    assert found is not None
    assert found.finished_ms is not None
    last = found.attempts[-1]
    completion = Completion(
        entry_id="1-1",
        spec=found.spec,
        state=found.state.value,
        attempt=last.number,
        deployment=last.deployment,
        tier=last.tier,
        worker=last.worker,
        accepted_ms=found.accepted_ms,
        dispatched_ms=last.dispatched_ms,
        claimed_ms=last.claimed_ms,
        finished_ms=found.finished_ms,
        measures=found.measures,
        result=None,
        error=None,
    )
    gateway.ledger.write(usage.add, [completion])
    store(transitions.forget([job_id]))


class TestLists:
    def walk(self, http: httpx.Client, limit: int) -> list[str]:
        ids: list[str] = []
        query: dict[str, Any] = {"limit": limit}
        while True:
            page = http.get("/v1/jobs", params=query).json()
            assert len(page["data"]) <= limit
            ids += [job["id"] for job in page["data"]]
            assert page["has_more"] == (page["next_cursor"] is not None)
            if not page["has_more"]:
                return ids
            query["cursor"] = page["next_cursor"]

    def test_nothing(self, http: httpx.Client) -> None:
        page = http.get("/v1/jobs").json()
        assert page == {"object": "list", "data": [], "has_more": False, "next_cursor": None}

    @pytest.mark.parametrize("limit", [1, 2, 7, 100])
    def test_the_newest_first_each_once(self, http: httpx.Client, store: Store, limit: int) -> None:
        # Of one call: all of one millisecond.
        specs = [JobSpec(id=new_id("job"), endpoint=CHAT, model="small") for _ in range(6)]
        store(transitions.accept([NewJob(spec, b"") for spec in specs]))
        jobs = [submit(http), *(show(http, spec.id) for spec in specs)]
        newest_first = sorted(((job["accepted_ms"], job["id"]) for job in jobs), reverse=True)
        assert self.walk(http, limit) == [job_id for _, job_id in newest_first]

    def test_results_are_left_out(self, worker: Worker, http: httpx.Client) -> None:
        job = ended(http, submit(http)["id"])
        (listed,) = http.get("/v1/jobs").json()["data"]
        assert listed == {**job, "result": None}

    @pytest.mark.parametrize("limit", [1, 2, 3, 100])
    def test_jobs_that_the_ledger_has_come_after_those_that_it_has_not(
        self, worker: Worker, http: httpx.Client, gateway: Served, store: Store, limit: int
    ) -> None:
        jobs = [ended(http, submit(http)["id"])["id"] for _ in range(4)]
        for job in jobs[:3]:
            record(gateway, store, job)
        store.redis.delete(*(f"fabric:job:{job}" for job in jobs[:2]))  # expired
        assert self.walk(http, limit) == jobs[::-1]

    def test_lines_of_batches_are_not_listed(self, http: httpx.Client, gateway: Served) -> None:
        spec = JobSpec(id=new_id("job"), endpoint=CHAT, model="small", batch_id=new_id("batch"), line_no=1)
        line = Completion(
            entry_id="1-1",
            spec=spec,
            state="succeeded",
            attempt=1,
            deployment="small-cpu",
            tier="cpu",
            worker="w1",
            accepted_ms=1,
            dispatched_ms=1,
            claimed_ms=1,
            finished_ms=2,
            measures=Measures(),
            result=None,
            error=None,
        )
        gateway.ledger.write(usage.add, [line])
        assert http.get("/v1/jobs").json()["data"] == []

    def test_a_parked_job_is_listed_once(
        self, worker: Worker, http: httpx.Client, gateway: Served, store: Store
    ) -> None:
        worker.act = lambda job: job.park()
        job_id = ended(http, submit(http)["id"])["id"]
        record(gateway, store, job_id)
        assert self.walk(http, 10) == [job_id]
        worker.act = lambda job: job.succeed()
        http.post(f"/v1/dead-letters/{job_id}/replay")
        assert ended(http, job_id)["state"] == "succeeded"
        record(gateway, store, job_id)
        assert self.walk(http, 10) == [job_id]
        store.redis.delete(f"fabric:job:{job_id}")
        assert self.walk(http, 10) == [job_id]

    def test_what_the_ledger_keeps_of_a_job(
        self, worker: Worker, http: httpx.Client, gateway: Served, store: Store
    ) -> None:
        before = ended(http, submit(http)["id"])
        record(gateway, store, before["id"])
        store.redis.delete(f"fabric:job:{before['id']}")
        after = show(http, before["id"])
        lost = {"result", "decision", "stream", "raised_from", "entities", "redacted"}
        for job in (before, after):
            for attempt in job["attempts"]:
                attempt.pop("measures", None)
                attempt.pop("decision", None)
        assert {k: v for k, v in after.items() if k not in lost} == {k: v for k, v in before.items() if k not in lost}
        assert http.post(f"/v1/jobs/{before['id']}/cancel").json() == show(http, before["id"])
        assert http.get(f"/v1/jobs/{before['id']}/events").status_code == 404

    @pytest.mark.parametrize(
        ("query", "param"),
        [
            ("limit=0", "limit"),
            ("limit=101", "limit"),
            ("limit=x", "limit"),
            ("cursor=x", "cursor"),
            ("cursor=open:1:job_x", "cursor"),
            ("after=x", "after"),
            ("frobnicate=", "frobnicate"),
        ],
    )
    def test_wrong_parameters_are_named(self, http: httpx.Client, query: str, param: str) -> None:
        refused = http.get(f"/v1/jobs?{query}")
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)

    def test_so_are_parameters_of_routes_that_take_none(self, http: httpx.Client) -> None:
        refused = http.get(f"/v1/jobs/{submit(http)['id']}?verbose=1")
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "verbose")
