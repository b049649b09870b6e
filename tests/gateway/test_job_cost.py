"""What a caller is told of a job's cost: of all its attempts, while the record is there and afterwards."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from fabric.contracts.errors import EngineError
from fabric.contracts.job import Measures, Usage
from fabric.contracts.job_seals import HomeSeals
from fabric.ledger import usage
from fabric.recorder import Recorder
from fabric.store import Store, transitions
from fabric.store.transitions import Failure

if TYPE_CHECKING:
    from tests.gateway.conftest import Running, Served, Worker

BODY = {"model": "small", "messages": [{"role": "user", "content": "hi"}]}
#: What the worker of these tests says of an attempt that succeeded.
LAST_USD = 0.000002


def fail(store: Store, job: Running, cost_usd: float) -> None:
    measures = Measures(engine_s=1.0, usage=Usage(7, 3, estimated=True), cost_usd=cost_usd, price_version="v")
    error = EngineError("The engine stumbled.").info
    failure = Failure(job.spec.id, job.claimed.attempt, 0, error, measures=measures.dump(), cost_usd=cost_usd)
    assert store(transitions.fail([failure])) == ["queued"]


def test_a_job_costs_what_all_its_attempts_cost(
    gateway: Served, http: httpx.Client, by_hand: Worker, store: Store, meanwhile: Callable[..., Future[Any]]
) -> None:
    asked = meanwhile(http.post, "/v1/chat/completions", json=BODY)
    fail(store, by_hand.next(), 0.25)
    fail(store, by_hand.next(), 0.5)
    by_hand.next().succeed()
    answer = asked.result()
    job_id, total = answer.headers["x-fabric-job-id"], pytest.approx(0.75 + LAST_USD)
    assert (answer.headers["x-fabric-attempts"], float(answer.headers["x-fabric-cost-usd"])) == ("3", total)
    assert http.get(f"/v1/jobs/{job_id}").json()["cost_usd"] == total

    Recorder(store, gateway.ledger, HomeSeals(gateway.settings.secrets)).step()
    rows = gateway.ledger.read(usage.of_job, "default", job_id)
    assert [(row.attempt, row.state, row.cost_usd, row.price_version) for row in rows] == [
        (1, "requeued", 0.25, "v"),
        (2, "requeued", 0.5, "v"),
        (3, "succeeded", LAST_USD, None),
    ]
    assert [(row.input_tokens, row.estimated, row.fault) for row in rows[:2]] == [(7, 1, "engine")] * 2
    (row,) = http.get("/v1/usage").json()["data"]
    assert (row["requests"], row["attempts"], row["estimated"], row["cost_usd"]) == (1, 3, 2, total)
    store.redis.delete(f"fabric:job:{job_id}")
    assert http.get(f"/v1/jobs/{job_id}").json()["cost_usd"] == total
    (listed,) = http.get("/v1/jobs").json()["data"]
    assert (listed["id"], listed["cost_usd"]) == (job_id, total)


def test_one_that_failed_for_good_has_cost_something(
    gateway: Served, http: httpx.Client, by_hand: Worker, store: Store
) -> None:
    job_id = http.post("/v1/jobs", json={"endpoint": "/v1/chat/completions", "body": BODY}).json()["id"]
    fail(store, by_hand.next(), 0.25)
    assert http.get(f"/v1/jobs/{job_id}").json()["cost_usd"] is None  # it isn't over
    by_hand.next().fail()
    assert http.get(f"/v1/jobs/{job_id}").json()["cost_usd"] == pytest.approx(0.25 + LAST_USD)
    Recorder(store, gateway.ledger, HomeSeals(gateway.settings.secrets)).step()
    (row,) = http.get("/v1/usage").json()["data"]
    assert (row["requests"], row["failed_requests"], row["cloud_equivalent_usd"]) == (1, 1, 0)
