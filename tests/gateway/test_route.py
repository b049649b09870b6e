"""``POST /v1/route``: what would happen to a request, with nothing happening."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from fabric.contracts.catalog import Catalog
from fabric.contracts.job import JobSpec
from fabric.contracts.worker import WorkerInfo
from fabric.routing import decide, policy_hash, world_of
from fabric.store import Store, reads, transitions
from fabric.store.transitions import NewJob

if TYPE_CHECKING:
    import httpx

    from fabric.gateway import GatewaySettings
    from tests.gateway.conftest import Served

CHAT = "/v1/chat/completions"
PLACES = Catalog.model_validate(
    {
        "models": [
            {
                "name": "small",
                "deployments": [
                    {"engine": "mock", "tier": "cpu", "capabilities": ["chat", "embeddings"], "context_window": 1000},
                    {"engine": "mock", "tier": "cloud", "price": {"output_per_million": 10.0}},
                ],
            }
        ],
        "policies": {"far": {"kind": "cloud-first"}},
    }
)


@pytest.fixture
def routing(serve: Callable[..., Served], settings: GatewaySettings) -> httpx.Client:
    http: httpx.Client = serve(replace(settings, catalog=PLACES)).http()
    return http


def chat(text: str = "hi", **fields: Any) -> dict[str, Any]:
    return {"model": "small", "messages": [{"role": "user", "content": text}], **fields}


def routed(http: httpx.Client, body: dict[str, Any]) -> dict[str, Any]:
    answer = http.post("/v1/route", json=body)
    assert answer.status_code == 200, answer.text
    values: dict[str, Any] = answer.json()
    assert values["object"] == "route"
    return values


def order(values: dict[str, Any]) -> list[str]:
    return [place["deployment"] for place in values["decision"]["plan"]]


def heartbeat(store: Store, slots: int = 2) -> None:
    names = {"small-cpu": slots}
    store(transitions.heartbeat(WorkerInfo("w1", "cpu", "host", 1, 0, names, {"small-cpu": 2 * slots}, {}), []))


def teach(store: Store) -> None:
    """Fifty jobs of two seconds, with answers of twenty tokens."""
    at = int(time.time() * 1000)
    pace = {"n": 50, "at": at, "engine_s": 2.0, "token_s": 0.05, "first_n": 50, "x": 10, "y": 1.0, "xx": 100, "xy": 10}
    store.redis.hset(
        "fabric:experience",
        mapping={
            f"pace {CHAT} small-cpu": orjson.dumps(pace),
            f"length {CHAT} small": orjson.dumps({"n": 50, "at": at, "tokens": 20.0}),
        },
    )


class TestTheDecision:
    def test_is_the_plan_with_its_reasons(self, routing: httpx.Client) -> None:
        values = routed(routing, chat(max_tokens=100))
        assert (values["decision"]["policy"], values["decision"]["policy_hash"]) == ("local-first", policy_hash(PLACES))
        assert order(values) == ["small-cpu", "small-cloud"]
        assert values["chosen"] == values["decision"]["plan"][0]
        assert values["error"] is None
        assert values["decision"]["plan"][1]["expected_cost_usd"] == pytest.approx(100 * 10 / 1e6)

    def test_follows_the_policy_that_is_named(self, routing: httpx.Client) -> None:
        assert order(routed(routing, chat(fabric={"policy": "far"}))) == ["small-cloud", "small-cpu"]

    def test_names_what_is_eliminated(self, routing: httpx.Client) -> None:
        values = routed(routing, chat(fabric={"privacy": "restricted"}))
        assert order(values) == ["small-cpu"]
        (out,) = values["decision"]["eliminated"]
        assert (out["deployment"], out["reason"]) == ("small-cloud", "privacy")

    def test_to_nowhere_says_what_the_request_would_get(self, routing: httpx.Client) -> None:
        values = routed(routing, chat(max_tokens=900, fabric={"privacy": "restricted", "max_cost_usd": 0}))
        assert values["chosen"] is not None
        values = routed(routing, chat("many words " * 2_000, fabric={"privacy": "restricted"}))
        assert (values["chosen"], values["decision"]["plan"]) == (None, [])
        assert (values["error"]["status"], values["error"]["code"]) == (422, "no_eligible_deployment")

    def test_says_when_from_what_has_been_measured(self, routing: httpx.Client, store: Store) -> None:
        heartbeat(store)
        teach(store)
        chosen = routed(routing, chat())["chosen"]
        assert (chosen["deployment"], chosen["live"], chosen["measured"]) == ("small-cpu", True, True)
        assert (chosen["expected_wait_s"], chosen["expected_first_token_s"]) == (0, pytest.approx(1.0))
        assert chosen["expected_finish_s"] == pytest.approx(1.0 + 20 * 0.05)

    def test_counts_what_waits_before_it(self, routing: httpx.Client, store: Store) -> None:
        heartbeat(store)
        teach(store)
        specs = [JobSpec(f"job_{n:026}", CHAT, "small", priority="standard") for n in range(10)]
        store(transitions.accept([NewJob(spec, b"{}") for spec in specs]))
        assert routed(routing, chat())["chosen"]["expected_wait_s"] == 0, "interactive requests go first"
        values = routed(routing, {"endpoint": CHAT, "body": chat()})
        assert values["chosen"]["expected_wait_s"] == pytest.approx(10 * 2.0 / 2), "jobs are of the class standard"

    def test_a_deadline_that_would_be_missed_there_leads_elsewhere(self, routing: httpx.Client, store: Store) -> None:
        heartbeat(store)
        teach(store)
        values = routed(routing, chat(fabric={"deadline_s": 0.5}))
        assert order(values) == ["small-cloud"]
        assert values["decision"]["eliminated"][0]["reason"] == "deadline"

    def test_is_the_schedulers(self, routing: httpx.Client, store: Store) -> None:
        """Same state in, same decision out."""
        heartbeat(store)
        teach(store)
        values = routed(routing, chat())
        room, experience = store(transitions.room()), store(reads.experience())
        world = world_of(room.workers, room.busy, PLACES, experience=experience, now_ms=int(time.time() * 1000))
        spec = JobSpec("job_1", CHAT, "small", needs=("chat",), prompt_tokens=5)
        real = orjson.loads(decide(spec, PLACES, policy_hash(PLACES), world).dump())
        assert values["decision"] == real


class TestTheRequest:
    @pytest.mark.parametrize(
        "body",
        [
            chat(),
            {"model": "small", "input": "x"},
            {"endpoint": CHAT, "body": chat(), "fabric": {"privacy": "public"}},
            {"endpoint": "/v1/embeddings", "body": {"model": "small", "input": "x"}},
        ],
    )
    def test_may_be_a_job_or_a_body(self, routing: httpx.Client, body: dict[str, Any]) -> None:
        assert routed(routing, body)["chosen"]["deployment"] == "small-cpu"

    @pytest.mark.parametrize(
        ("body", "status", "param"),
        [
            ({}, 400, "endpoint"),
            ({"model": "small"}, 400, "endpoint"),
            (chat(temperature=9), 400, "temperature"),
            (chat(fabric={"policy": "none-such"}), 400, "fabric.policy"),
            ({"endpoint": CHAT, "body": chat(), "fabric": {"policy": "none-such"}}, 400, "fabric.policy"),
            ({"endpoint": CHAT, "body": chat(temperature=9)}, 400, "body.temperature"),
            ({**chat(), "model": "gone"}, 404, "model"),
        ],
    )
    def test_that_would_be_refused_is_refused_here(
        self, routing: httpx.Client, body: dict[str, Any], status: int, param: str
    ) -> None:
        answer = routing.post("/v1/route", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)

    def test_leaves_nothing_behind(self, routing: httpx.Client, store: Store) -> None:
        routed(routing, chat("a secret", fabric={"tags": ["t"]}))
        ours = (b"fabric:sweep", b"fabric:policies")
        assert [key for key in store.redis.keys("*") if not key.startswith(ours)] == []


def test_a_request_with_an_unknown_policy_is_refused_before_it_is_a_job(http: httpx.Client, store: Store) -> None:
    for path, body in (
        (CHAT, chat(fabric={"policy": "none-such"})),
        ("/v1/jobs", {"endpoint": CHAT, "body": chat(), "fabric": {"policy": "none-such"}}),
    ):
        answer = http.post(path, json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unknown_policy")
        assert "cheapest" in answer.json()["error"]["message"]
    assert store(reads.live_count()) == 0
