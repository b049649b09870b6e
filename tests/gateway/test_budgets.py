"""Budgets at the door: what could go beyond one is refused, whichever gateway it comes to."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from fabric.contracts.budget import NANO, window_at
from fabric.contracts.catalog import Catalog
from fabric.contracts.errors import NoEligibleDeployment
from fabric.contracts.job import JobState, Measures, Usage
from fabric.store import Store, budgets, reads, transitions
from fabric.store.budgets import Opening
from fabric.store.transitions import Dispatch, Outcome, Rejection

if TYPE_CHECKING:
    from fabric.gateway import GatewaySettings
    from tests.gateway.conftest import Served

CHAT = "/v1/chat/completions"
#: 1 US dollar for each of at most 5 tokens of an answer, and nothing for the question.
COST_USD = 5.0
CATALOG = Catalog.model_validate(
    {
        "models": [
            {
                "name": "small",
                "deployments": [
                    {
                        "name": "dear",
                        "engine": "mock",
                        "tier": "cloud",
                        "capabilities": ["chat"],
                        "price": {"input_per_million": 0, "output_per_million": 1e6},
                    },
                ],
            }
        ],
        "budgets": [
            {"name": "daily", "usd": 100, "window": "day"},
            {"name": "project", "usd": 12, "window": "total", "tag": "project"},
            {"name": "watched", "usd": 1, "window": "month", "tag": "watched", "hard": False},
        ],
    }
)


def open_all(store: Store) -> None:
    now_ms = int(time.time() * 1000)
    windows = [(budget, window_at(budget.window, now_ms)) for budget in CATALOG.budgets]
    store(budgets.open_([Opening(budget.name, window.name, window.end_ms) for budget, window in windows]))


def job(*tags: str, **options: Any) -> dict[str, Any]:
    body = {"model": "small", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
    return {"endpoint": CHAT, "body": body, "fabric": {"tags": list(tags), **options}}


@pytest.fixture
def budgeted(serve: Callable[..., Served], settings: GatewaySettings) -> Served:
    return serve(replace(settings, catalog=CATALOG))


def test_a_budget_that_nobody_has_counted_yet_is_waited_for(budgeted: Served) -> None:
    answer = budgeted.http().post("/v1/jobs", json=job())
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def test_beyond_it_nothing_gets_in(budgeted: Served, store: Store) -> None:
    open_all(store)
    http = budgeted.http()
    assert [http.post("/v1/jobs", json=job("project")).status_code for _ in range(3)] == [202, 202, 402]
    refused = http.post(CHAT, json=job("project")["body"] | {"fabric": {"tags": ["project"]}})
    assert refused.status_code == 402
    error = refused.json()["error"]
    assert (error["code"], error["type"]) == ("budget_exceeded", "insufficient_quota")
    assert "project" in error["message"]
    # Less fits.
    assert http.post("/v1/jobs", json=job("project", max_cost_usd=2.0)).status_code == 202
    assert http.post("/v1/jobs", json=job("project", max_cost_usd=0.5)).status_code == 402
    assert http.post("/v1/jobs", json=job()).status_code == 202
    assert budgeted.metric("fabric_budget_blocks_total", scope="tag", unit="usd") == 3


#: Bodies of the routes that have something run, by route.
WAYS_IN: dict[str, dict[str, Any]] = {
    CHAT: {"model": "small", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5},
    "/v1/completions": {"model": "small", "prompt": "hi", "max_tokens": 5},
    "/v1/embeddings": {"model": "small", "input": "hi"},
    "/v1/jobs": job(),
}
#: What else is posted: lines of batches and replays have tests of their own, the rest runs nothing.
OTHERS = {
    *("/v1/batches", "/v1/dead-letters/{job_id}/replay", "/v1/files", "/v1/route", "/v1/keys"),
    *("/v1/jobs/{job_id}/cancel", "/v1/batches/{batch_id}/cancel", "/v1/keys/{key_id}/rotate"),
    "/v1/webhook-deliveries/{delivery_id}/replay",
}


def test_no_way_in_goes_past_it(serve: Callable[..., Served], settings: GatewaySettings, store: Store) -> None:
    """One that is added has to be named here."""
    place = CATALOG.models[0].deployments[0]
    every = place.model_copy(update={"capabilities": ("chat", "completions", "embeddings")})
    priced = every.model_copy(update={"price": every.price.model_copy(update={"input_per_million": 1e6})})
    model = CATALOG.models[0].model_copy(update={"deployments": (priced,)})
    tight = Catalog.model_validate({"budgets": [{"name": "tight", "usd": 0.001, "window": "total"}]})
    catalog = Catalog(models=(model,), budgets=tight.budgets)
    served = serve(replace(settings, catalog=catalog))
    store(budgets.open_([Opening("tight", "total", None)]))
    http = served.http()
    paths = http.get("/openapi.json").json()["paths"]
    assert {path for path, methods in paths.items() if "post" in methods} == {*WAYS_IN, *OTHERS}
    for path, body in WAYS_IN.items():
        for more in ({}, {"stream": True}) if "completions" in path else ({},):
            answer = http.post(path, json=body | more)
            assert (answer.status_code, answer.json()["error"]["code"]) == (402, "budget_exceeded"), path
    assert store(transitions.room()).lanes == ()


def test_a_budget_in_tokens_is_as_any_other(
    serve: Callable[..., Served], settings: GatewaySettings, store: Store
) -> None:
    few = {"name": "few", "tokens": 30, "window": "total"}
    catalog = CATALOG.model_copy(update={"budgets": Catalog.model_validate({"budgets": [few]}).budgets})
    served = serve(replace(settings, catalog=catalog))
    store(budgets.open_([Opening("few", "total", None)]))
    http = served.http()
    codes = [http.post("/v1/jobs", json=job()).status_code for _ in range(6)]
    assert codes[0] == 202
    assert codes[-1] == 402
    (shown,) = http.get("/v1/budgets").json()["data"]
    assert (shown["unit"], shown["limit_tokens"], shown["spent_tokens"]) == ("tokens", 30, 0)
    assert shown["reserved_tokens"] + shown["left_tokens"] == 30
    assert "limit_usd" not in shown
    assert served.metric("fabric_budget_blocks_total", scope="all", unit="tokens") == codes.count(402)


def test_what_is_dearer_than_the_whole_budget_is_refused_for_good(budgeted: Served, store: Store) -> None:
    open_all(store)
    asked = job("project")
    asked["body"]["max_tokens"] = 13
    refused = budgeted.http().post("/v1/jobs", json=asked)
    assert refused.status_code == 402
    assert "whole budget project" in refused.json()["error"]["message"]


def test_a_window_says_when_it_begins_again(budgeted: Served, store: Store) -> None:
    open_all(store)
    http = budgeted.http()
    codes = [http.post("/v1/jobs", json=job()).status_code for _ in range(21)]
    assert codes == [202] * 20 + [429]
    refused = http.post("/v1/jobs", json=job())
    end_ms = window_at("day", int(time.time() * 1000)).end_ms
    assert end_ms is not None
    assert abs(float(refused.headers["retry-after"]) - (end_ms / 1000 - time.time())) < 60


def test_one_that_only_counts_refuses_nothing(budgeted: Served, store: Store) -> None:
    open_all(store)
    http = budgeted.http()
    assert http.post("/v1/jobs", json=job("watched")).status_code == 202
    shown = {budget["name"]: budget for budget in http.get("/v1/budgets").json()["data"]}
    assert shown["watched"]["reserved_usd"] == COST_USD
    assert (shown["watched"]["left_usd"], shown["watched"]["hard"]) == (0, False)
    assert shown["daily"]["left_usd"] == 95
    assert shown["project"]["window_end_ms"] is None
    assert budgeted.metric("fabric_budget_used_ratio", budget="watched") == COST_USD


def test_the_reservation_is_the_cap_of_all_attempts(budgeted: Served, store: Store) -> None:
    open_all(store)
    job_id = budgeted.http().post("/v1/jobs", json=job("project")).json()["id"]
    record = store(reads.job(job_id))
    assert record is not None
    assert record.spec.max_cost_usd == COST_USD


def test_many_at_once_over_three_gateways_never_go_beyond(
    serve: Callable[..., Served], settings: GatewaySettings, store: Store
) -> None:
    """Jobs are settled while others come in: in the end as much was spent as the ledger of this test says."""
    open_all(store)
    gateways = [serve(replace(settings, catalog=CATALOG)) for _ in range(3)]
    clients = [gateway.http() for gateway in gateways]

    def submit(number: int) -> str | None:
        answer = clients[number % 3].post("/v1/jobs", json=job("watched"))
        assert answer.status_code in (202, 429)
        return answer.json()["id"] if answer.status_code == 202 else None

    spent = 0
    accepted: list[str] = []
    with ThreadPoolExecutor(24) as threads:
        for wave in range(10):
            accepted += [job_id for job_id in threads.map(submit, range(100)) if job_id]
            room = store(transitions.room())
            taken = store(transitions.take([(lane.name, 1_000) for lane in room.lanes]))
            ids = [each.spec.id for each in taken]
            attempts = store(transitions.dispatch([Dispatch(each, "dear", "cloud", b"{}") for each in ids]))
            claimed = store(transitions.claim("w1", list(zip(ids, attempts, strict=True))))
            cost = (wave % 5 + 1) * 0.5
            measures = Measures(engine_s=1, usage=Usage(1, 5), cost_usd=cost).dump()
            ends = [Outcome(c.spec.id, c.attempt, JobState.SUCCEEDED, b"{}", measures=measures) for c in claimed]
            assert sum(store(transitions.commit(ends))) == len(ids)
            spent += round(len(ids) * cost * NANO)
            daily, watched = _balances(store)
            assert daily.spent + daily.reserved <= 100 * NANO
            assert (daily.spent, watched.spent, daily.reserved) == (spent, spent, 0)
    assert 20 < len(accepted) < 1_000
    assert 100 - 2 * COST_USD <= spent / NANO <= 100


def test_a_replay_counts_in_the_window_of_now(budgeted: Served, store: Store) -> None:
    open_all(store)
    http = budgeted.http()
    accepted = http.post("/v1/jobs", json=job("project")).json()["id"]
    (taken,) = store(transitions.take([(store(transitions.room()).lanes[0].name, 1)]))
    store(transitions.reject([Rejection(taken.spec.id, JobState.DEAD, NoEligibleDeployment("Nowhere.").info)]))
    # As if it had been accepted long ago: nobody knows that day any more.
    known = store(reads.charges(accepted))
    today = window_at("day", int(time.time() * 1000)).name
    assert today in known
    store.redis.hset(f"fabric:job:{accepted}", "charges", known.replace(today, "2020-02-20"))
    assert http.post(f"/v1/dead-letters/{accepted}/replay").status_code == 200
    shown = {budget["name"]: budget["reserved_usd"] for budget in http.get("/v1/budgets").json()["data"]}
    assert (shown["daily"], shown["project"]) == (COST_USD, COST_USD)
    assert today in store(reads.charges(accepted))


def _balances(store: Store) -> list[budgets.Balance]:
    now_ms = int(time.time() * 1000)
    names = [("daily", window_at("day", now_ms).name), ("watched", window_at("month", now_ms).name)]
    found = [balance for balance in store(budgets.balances(names)) if balance is not None]
    assert len(found) == 2
    return found
