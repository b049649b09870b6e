"""Models, tiers, health, metrics, the API's own description, and what happens to requests that fit nothing."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from fabric.contracts.breaker import Health
from fabric.contracts.ids import line_job_id, new_id
from fabric.contracts.job import JobSpec
from fabric.contracts.worker import WorkerInfo
from fabric.ledger.ledger import open_engine
from fabric.store import Store, reads, transitions
from fabric.store.transitions import NewJob

if TYPE_CHECKING:
    from tests.conftest import Valkey
    from tests.gateway.conftest import Served, Worker

CHAT = "/v1/chat/completions"
BODY = {"model": "small", "messages": [{"role": "user", "content": "hi"}]}


class TestModels:
    def test_all_of_them(self, client: openai.OpenAI) -> None:
        assert [model.id for model in client.models.list()] == ["small", "org/large"]

    @pytest.mark.parametrize("name", ["small", "org/large"])
    def test_one(self, client: openai.OpenAI, name: str) -> None:
        model = client.models.retrieve(name)
        assert (model.id, model.object, model.owned_by) == (name, "model", "fabric")

    def test_none(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.NotFoundError) as refused:
            client.models.retrieve("nope")
        assert refused.value.code == "model_not_found"


class TestTiers:
    def test_without_workers(self, http: httpx.Client) -> None:
        for _ in range(2):
            http.post("/v1/jobs", json={"endpoint": CHAT, "body": BODY})
        (tier,) = http.get("/v1/tiers").json()["data"]
        assert (tier["tier"], tier["workers"], tier["slots"], tier["backlog"]) == ("cpu", 0, 0, 2)
        small, large = tier["deployments"]
        assert (small["name"], small["model"], small["engine"]) == ("small-cpu", "small", "mock")
        assert (small["backlog"], large["backlog"]) == (2, 0)

    def test_with_one(self, by_hand: Worker, http: httpx.Client) -> None:
        http.post("/v1/jobs", json={"endpoint": CHAT, "body": BODY})
        job = by_hand.next()
        (tier,) = http.get("/v1/tiers").json()["data"]
        small = tier["deployments"][0]
        assert (tier["workers"], small["workers"], small["slots"], small["busy"]) == (1, 1, 4, 1)
        job.succeed()


class TestWorkers:
    def test_without_any(self, http: httpx.Client) -> None:
        assert http.get("/v1/workers").json() == {"object": "list", "data": [], "has_more": False, "next_cursor": None}

    def test_those_that_live(self, http: httpx.Client, store: Store) -> None:
        def beat(name: str, started_ms: int, **values: Any) -> None:
            info = WorkerInfo(name, "cpu", "box", 7, started_ms, {"small-cpu": 4}, {"small-cpu": 6}, {}, **values)
            store(transitions.heartbeat(info, []))

        beat("worker_b", 2_000, draining=True)
        beat("worker_a", 1_000, states={"small-cpu": "loaded"})
        first, second = http.get("/v1/workers").json()["data"]
        assert first == {
            **{"id": "worker_a", "object": "worker", "tier": "cpu", "host": "box", "pid": 7, "started_at": 1},
            **{"draining": False, "slots": 4, "busy": 0},
            "deployments": [{"name": "small-cpu", "slots": 4, "busy": 0, "state": "loaded"}],
        }
        assert (second["id"], second["draining"]) == ("worker_b", True)
        store.redis.zadd("fabric:workers", {"worker_a": 1_000})  # its last heartbeat was long ago
        assert [worker["id"] for worker in http.get("/v1/workers").json()["data"]] == ["worker_b"]


class TestHealth:
    def test_ready(self, http: httpx.Client) -> None:
        answer = http.get("/health/ready")
        parts = {"store": "ok", "events": "ok", "ledger": "ok", "broker": "ok"}
        assert answer.json() == {"status": "ok", "parts": parts}

    def test_a_store_that_is_away(self, http: httpx.Client, valkey: Valkey, gateway: Served) -> None:
        valkey.kill()
        try:
            answer = http.get("/health/ready")
            assert http.get("/health/live").status_code == 200
        finally:
            valkey.start()
        assert answer.status_code == 503
        assert answer.json()["parts"]["store"] == "away"
        assert "store" in answer.json()["error"]["message"]
        assert answer.headers["retry-after"] == "1"
        gateway.until_ready()

    def test_a_ledger_that_is_away(self, gateway: Served, http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
        nowhere = open_engine(f"{gateway.settings.database_url}/not-a-folder")
        monkeypatch.setattr(gateway.inside.ledger._ledger, "engine", nowhere)
        answer = http.get("/health/ready")
        assert answer.status_code == 503
        assert answer.json()["parts"] == {"store": "ok", "events": "ok", "ledger": "away", "broker": "ok"}
        listed = http.get("/v1/batches")
        assert (listed.status_code, listed.headers["retry-after"]) == (503, "1")


class TestMetrics:
    def test_requests_by_route_method_and_status(self, worker: Worker, http: httpx.Client, gateway: Served) -> None:
        seen = [
            (CHAT, "POST", "200", lambda: http.post(CHAT, json=BODY)),
            (CHAT, "POST", "400", lambda: http.post(CHAT, json={})),
            ("/v1/jobs/{job_id}", "GET", "404", lambda: http.get("/v1/jobs/nope")),
            ("/v1/models/{model_id:path}", "GET", "200", lambda: http.get("/v1/models/org/large")),
            ("unmatched", "GET", "404", lambda: http.get("/v1/nope/secret")),
        ]
        for route, method, status, call in seen:
            labels = {"route": route, "method": method, "status": status}
            before = gateway.metric("fabric_http_requests_total", **labels)
            call()
            assert gateway.metric("fabric_http_requests_total", **labels) == before + 1
        assert "secret" not in http.get("/metrics").text

    def test_what_the_fabric_holds(self, http: httpx.Client, gateway: Served) -> None:
        http.post("/v1/jobs", json={"endpoint": CHAT, "body": BODY, "fabric": {"priority": "batch"}})
        assert gateway.metric("fabric_backlog_jobs", **{"class": "batch"}) == 1
        assert gateway.metric("fabric_store_up") == 1
        assert gateway.metric("fabric_fenced_commits_total") == 0
        assert gateway.metric("fabric_stage_seconds_count", stage="accept") > 0

    def test_workers_slots(self, by_hand: Worker, gateway: Served, eventually: Any) -> None:
        eventually(lambda: gateway.metric("fabric_worker_slots", tier="cpu", state="busy") == 1)
        assert gateway.metric("fabric_worker_slots", tier="cpu", state="free") == 7

    def test_without_the_store_the_rest_is_told(self, gateway: Served, valkey: Valkey) -> None:
        valkey.kill()
        try:
            assert gateway.metric("fabric_store_up") == 0
            assert gateway.metric("fabric_http_requests_total") > 0
        finally:
            valkey.start()
        gateway.until_ready()


class TestDescription:
    def test_every_route_is_in_it(self, http: httpx.Client) -> None:
        told = http.get("/openapi.json").json()
        assert told["openapi"].startswith("3.1")
        routes = {(method.upper(), path) for path, methods in told["paths"].items() for method in methods}
        assert {
            ("POST", CHAT),
            ("POST", "/v1/completions"),
            ("POST", "/v1/embeddings"),
            ("GET", "/v1/models"),
            ("POST", "/v1/files"),
            ("GET", "/v1/files/{file_id}/content"),
            ("POST", "/v1/batches"),
            ("POST", "/v1/jobs"),
            ("GET", "/v1/jobs/{job_id}/events"),
            ("DELETE", "/v1/dead-letters/{job_id}"),
            ("GET", "/health/ready"),
        } <= routes
        for method, path in routes:
            asked = re.sub(r"\{\w+\}", "x", path)
            assert http.request(method, asked).status_code != 405, (method, path)

    def test_every_reference_leads_somewhere(self, http: httpx.Client) -> None:
        told = http.get("/openapi.json").json()
        references = list(_references(told))
        assert len(references) > 50
        for reference in references:
            node: Any = told
            for step in reference.removeprefix("#/").split("/"):
                node = node[step]

    def test_operations_have_names_of_their_own(self, http: httpx.Client) -> None:
        told = http.get("/openapi.json").json()
        names = [operation["operationId"] for methods in told["paths"].values() for operation in methods.values()]
        assert len(names) == len(set(names))

    def test_no_route_promises_what_does_not_come(self, http: httpx.Client) -> None:
        assert "HTTPValidationError" not in http.get("/openapi.json").text

    def test_the_page_needs_nothing_from_elsewhere(self, http: httpx.Client) -> None:
        answer = http.get("/docs")
        assert answer.headers["content-type"].startswith("text/html")
        assert "/v1/chat/completions" in answer.text
        assert "ChatCompletionRequest" in answer.text
        assert re.findall(r"(?:src|href)='?(?:https?:)?//", answer.text) == []
        assert "<script" not in answer.text


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for name, value in node.items():
            if name == "$ref":
                yield value
            else:
                yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


class TestEdge:
    @pytest.mark.parametrize("path", ["/", "/v1", "/v1/nope", "/v1/jobs/", "/v1/chat/completions/", "//v1/jobs"])
    def test_unknown_routes(self, http: httpx.Client, path: str) -> None:
        refused = http.get(path)
        assert refused.status_code == 404
        assert refused.json()["error"] == {
            "message": "There is no such route. GET /docs lists those that there are.",
            "type": "invalid_request_error",
            "param": None,
            "code": "not_found",
        }

    @pytest.mark.parametrize(("method", "path"), [("GET", CHAT), ("PUT", "/v1/jobs"), ("DELETE", "/v1/models")])
    def test_another_method(self, http: httpx.Client, method: str, path: str) -> None:
        refused = http.request(method, path)
        assert (refused.status_code, refused.json()["error"]["code"]) == (405, "method_not_allowed")
        assert refused.headers["allow"]

    def test_a_mistake_of_ours_tells_nothing(
        self, http: httpx.Client, gateway: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def broken(*_: object) -> None:
            raise ValueError("the prompt was: secret")

        monkeypatch.setattr(gateway.inside.intake, "accept", broken)
        for path, body in ((CHAT, BODY), ("/v1/jobs", {"endpoint": CHAT, "body": BODY})):
            answer = http.post(path, json=body)
            assert answer.status_code == 500
            assert answer.json()["error"]["code"] == "internal_error"
            assert "secret" not in answer.text
        assert "secret" not in caplog.text
        assert f"POST {CHAT}: ValueError at " in caplog.text

    def test_prompts_are_in_no_log_and_no_error(
        self, worker: Worker, http: httpx.Client, caplog: pytest.LogCaptureFixture
    ) -> None:
        worker.act = lambda job: job.fail()
        told = [http.post(CHAT, json={**BODY, "messages": [{"role": "user", "content": "canary"}]})]
        told += [http.post(CHAT, json={**BODY, "canary": "canary"}), http.post(CHAT, content=b"canary")]
        told += [http.post(CHAT, json={**BODY, "temperature": "canary"})]
        assert all(answer.is_error for answer in told)
        assert "canary" not in caplog.text
        assert [json.loads(answer.text)["error"]["message"].count("canary") for answer in told] == [0, 1, 0, 0]

    def test_nothing_is_left_of_requests_that_ended(self, worker: Worker, http: httpx.Client, gateway: Served) -> None:
        for _ in range(3):
            http.post(CHAT, json=BODY)
            http.post(CHAT, json={**BODY, "stream": True}, headers={"idempotency-key": "k"})
        inside = gateway.inside
        assert inside.listener.following == 0
        assert (inside.waiters.busy, len(inside.waiters._waiting)) == (0, 0)


def test_a_job_of_a_batch_may_be_looked_at(http: httpx.Client, store: Store) -> None:
    batch_id = new_id("batch")
    spec = JobSpec(line_job_id(batch_id, 1), CHAT, "small", priority="batch", batch_id=batch_id, line_no=1)
    store(transitions.accept([NewJob(spec, b"")]))
    job = http.get(f"/v1/jobs/{spec.id}").json()
    assert (job["batch_id"], job["state"], job["queue_position"]) == (batch_id, "queued", 0)
    assert store(reads.live_count()) == 1


class TestBreakers:
    def opened(self, store: Store, open_s: float) -> None:
        health = asdict(Health(trips=1, why="failures", open_until=int((time.time() + open_s) * 1000)))
        store.redis.hset("fabric:health", "small-cpu", json.dumps(health))

    def test_their_state_is_shown(self, http: httpx.Client, store: Store, gateway: Served) -> None:
        def states() -> dict[str, str]:
            tiers = http.get("/v1/tiers").json()["data"]
            return {d["name"]: d["breaker"]["state"] for tier in tiers for d in tier["deployments"]}

        assert set(states().values()) == {"closed"}
        assert gateway.metric("fabric_breaker_state", deployment="small-cpu") == 0
        self.opened(store, 3_600)
        assert states()["small-cpu"] == "open"
        assert gateway.metric("fabric_breaker_state", deployment="small-cpu") == 2
        self.opened(store, -1)
        assert states()["small-cpu"] == "half_open"
        assert gateway.metric("fabric_breaker_state", deployment="small-cpu") == 1

    def test_a_dry_run_minds_them(self, worker: Worker, http: httpx.Client, store: Store) -> None:
        self.opened(store, 3_600)
        body = {"model": "small", "messages": [{"role": "user", "content": "hi"}]}

        def reasons() -> set[str]:
            return {out["reason"] for out in http.post("/v1/route", json=body).json()["decision"]["eliminated"]}

        until = time.monotonic() + 30
        while "health" not in reasons():
            assert time.monotonic() < until
        routed = http.post("/v1/route", json=body).json()
        assert (routed["chosen"], routed["error"]) == (None, None), "it would wait"


def test_moves_are_counted(store: Store, gateway: Served) -> None:
    store.redis.hset("fabric:fallbacks", "cloud cpu provider_error", 3)
    labels = {"from_tier": "cloud", "to_tier": "cpu", "reason": "provider_error"}
    assert gateway.metric("fabric_fallbacks_total", **labels) == 3
