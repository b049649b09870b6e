"""The dry run and the real one agree: a trace of 1,000 requests over a world that changes, decided by the API's route
and then by the scheduler."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from fabric.contracts.catalog import Catalog, Deployment
from fabric.contracts.message import Chunk
from fabric.contracts.worker import WorkerInfo
from fabric.store import Store, reads, transitions
from scheduler.loop import Loop

if TYPE_CHECKING:
    import httpx

    from fabric.gateway import GatewaySettings
    from tests.gateway.conftest import Served

JOBS = 1_000
CHAT = "/v1/chat/completions"
POLICIES = ("local-first", "cloud-first", "cheapest", "fastest", "best-quality", "weighted", "quick", "capped")
PLACES = ("m-cpu", "m-gpu", "m-near", "m-far")
CATALOG = Catalog.model_validate(
    {
        "models": [
            {
                "name": "m",
                "deployments": [
                    {"name": "m-cpu", "engine": "mock", "tier": "cpu", "quality": 0.2, "context_window": 2_000},
                    {"name": "m-gpu", "engine": "mock", "tier": "gpu", "quality": 0.5},
                    {
                        "name": "m-near",
                        "engine": "mock",
                        "tier": "cloud",
                        "region": "eu",
                        "quality": 0.9,
                        "data_policy": "zero_retention",
                        "capabilities": ["chat", "tools", "json_schema"],
                        "price": {"input_per_million": 5, "output_per_million": 15},
                    },
                    {
                        "name": "m-far",
                        "engine": "mock",
                        "tier": "cloud",
                        "region": "us",
                        "quality": 0.7,
                        "price": {"input_per_million": 1, "output_per_million": 2},
                    },
                ],
            }
        ],
        "policies": {
            "quick": {"kind": "cheapest", "max_latency_s": 3},
            "capped": {"kind": "fastest", "max_cost_usd": 0.004},
        },
        "rules": [
            {"when": '"banned" in tags', "deny": "not here"},
            {"when": '"eu" in tags', "require": {"region": "eu"}},
            {"when": "prompt_tokens > 1000", "prefer": {"tier": "cloud"}},
            {"when": '"half" in tags', "canary": {"deployment": "m-far", "weight": 0.5}},
        ],
    }
)


class Silent:
    """In place of the broker's sender."""

    def connect(self) -> None: ...

    def send(self, messages: Iterable[tuple[Deployment, Chunk]]) -> None:
        list(messages)


class World:
    """Workers, breakers and lessons that change as the trace says."""

    def __init__(self, store: Store, chance: random.Random) -> None:
        self._store = store
        self._chance = chance

    def change(self) -> None:
        chance, store = self._chance, self._store
        at = int(time.time() * 1000)
        for name in PLACES:
            if chance.random() < 0.8:
                slots = chance.choice((1, 4, 64))
                info = WorkerInfo(f"w-{name}", "cpu", "host", 1, 0, {name: slots}, {name: 5_000}, {})
                if chance.random() < 0.3:
                    info = replace(info, context={name: chance.choice((500, 1_500))})
                store(transitions.heartbeat(info, []))
            else:
                store(transitions.hand_back(f"w-{name}"))
            if chance.random() < 0.5:
                pace = {"n": 50, "at": at - chance.choice((0, 3_600_000)), "engine_s": chance.uniform(0.1, 9)}
                line = {"token_s": chance.uniform(0.001, 0.1), "first_n": 50, "x": 10, "y": 0.2, "xx": 100, "xy": 2}
                store.redis.hset("fabric:experience", f"pace {CHAT} {name}", orjson.dumps(pace | line))
            health = {"n": 0, "bad": 0, "slow": 0, "row": 0, "at": at, "open_until": at + 3_600_000, "trips": 1}
            store.redis.hdel("fabric:health", name)
            if chance.random() < 0.1:
                sick = orjson.dumps(health | {"why": "failures", "debt": 0, "debt_at": at})
                store.redis.hset("fabric:health", name, sick)
        length = {"n": 50, "at": at, "tokens": chance.uniform(5, 500)}
        store.redis.hset("fabric:experience", f"length {CHAT} m", orjson.dumps(length))


def request(chance: random.Random) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": "m",
        "messages": [{"role": "user", "content": "word " * chance.choice((3, 90, 1_200))}],
    }
    if chance.random() < 0.6:
        body["max_tokens"] = chance.choice((8, 200, 1_000))
    if chance.random() < 0.15:
        body["tools"] = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    fabric: dict[str, Any] = {
        "privacy": chance.choice(("public", "internal", "internal", "confidential", "restricted")),
        "policy": chance.choice(POLICIES),
        "priority": chance.choice(("interactive", "standard", "batch")),
        "tags": chance.sample(("eu", "half", "banned", "other"), chance.choice((0, 0, 1, 2))),
    }
    if chance.random() < 0.2:
        fabric["max_cost_usd"] = chance.choice((0.0, 0.002, 1.0))
    if chance.random() < 0.2:
        fabric["deadline_s"] = chance.choice((20, 600))
    return {"endpoint": CHAT, "body": body, "fabric": fabric}


@pytest.fixture
def served(serve: Callable[..., Served], settings: GatewaySettings) -> Served:
    return serve(replace(settings, catalog=CATALOG))


@pytest.fixture
def http(served: Served) -> Iterator[httpx.Client]:
    with served.http() as client:
        yield client


def told(decision: dict[str, Any]) -> dict[str, Any]:
    """All of it but sentences, in which seconds count down."""
    out = [(e["deployment"], e["reason"]) for e in decision["eliminated"]]
    return {**decision, "eliminated": out}


def test_same_state_in_same_decision_out(served: Served, http: httpx.Client, store: Store) -> None:
    chance = random.Random(20_26)
    world, scheduler = World(store, chance), Loop(store, Silent(), CATALOG)  # type: ignore[arg-type]
    fates: Counter[str] = Counter()
    for number in range(JOBS):
        if number % 5 == 0:
            world.change()
        asked = request(chance)
        asked["fabric"]["tags"].append(f"job-{number}")
        dry = http.post("/v1/route", json=asked).json()
        # What the door and the scheduler know is up to a second old otherwise, and this world changes more often.
        served.inside.outlook._until_s = scheduler._read_again_s = 0.0
        answer = http.post("/v1/jobs", json=asked)
        if answer.status_code != 202:
            assert dry["error"] is not None
            assert answer.json()["error"]["code"] == dry["error"]["code"]
            fates["refused"] += 1
            continue
        job_id = answer.json()["id"]
        scheduler.round()
        record = store(reads.job(job_id))
        assert record is not None
        if record.decision is not None:
            canary = "half" in asked["fabric"]["tags"]  # by chance of the job's own id, which a dry run has none of
            assert canary or told(record.decision) == told(dry["decision"])
            plan = record.decision["plan"]
            fates[plan[0]["tier"] if plan else "nowhere"] += 1
            assert record.state in (("dispatched",) if plan else ("failed", "expired"))
        else:
            assert dry["chosen"] is None or not dry["chosen"]["live"], "it waits where nobody is there"
            fates["waits"] += 1
            http.post(f"/v1/jobs/{job_id}/cancel")
    assert fates.total() == JOBS
    assert min(fates[fate] for fate in ("refused", "cpu", "gpu", "cloud", "waits")) >= 20, fates
