"""Windows are opened with what the ledger knows, also after the store has lost its memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from fabric.accounting.budget_keeper import BudgetKeeper
from fabric.contracts.budget import NANO, window_at
from fabric.contracts.catalog import Catalog
from fabric.contracts.completion import Completion
from fabric.contracts.ids import new_id
from fabric.contracts.job import JobSpec, JobState, Measures, Usage
from fabric.contracts.key import Permissions
from fabric.contracts.limits import KeyLimits
from fabric.contracts.secret import Secrets
from fabric.ledger import Ledger, keys, usage
from fabric.ledger.keys import NewKey
from fabric.store import Store, budgets, transitions
from fabric.store.budgets import Balance
from fabric.store.command import Command
from fabric.store.transitions import NewJob

NOW_MS = int(datetime(2026, 11, 25, 12, 30, tzinfo=UTC).timestamp() * 1000)
DAY_MS = 86_400_000
CATALOG = Catalog.model_validate(
    {
        "budgets": [
            {"name": "all", "usd": 10, "window": "day"},
            {"name": "acme", "usd": 10, "window": "month", "tenant": "acme"},
            {"name": "night", "usd": 10, "window": "total", "tag": "night"},
        ]
    }
)


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    ledger = Ledger(ledger_url)
    yield ledger
    ledger.close()


def done(number: int, cost: float, at_ms: int, **spec: Any) -> Completion:
    return Completion(
        entry_id=f"{number}-1",
        spec=JobSpec(id=f"job_{number:026}", endpoint="/v1/chat/completions", model="m", **spec),
        state=JobState.SUCCEEDED,
        attempt=1,
        deployment="d",
        tier="cloud",
        worker="w",
        accepted_ms=at_ms,
        dispatched_ms=at_ms,
        claimed_ms=at_ms,
        finished_ms=at_ms,
        measures=Measures(engine_s=1, usage=Usage(1, 1), cost_usd=cost + 3, machine_usd=3),
        error=None,
        result=None,
    )


def opened(store: Store) -> list[Balance | None]:
    return store(budgets.balances([("all", "2026-11-25"), ("acme", "2026-11"), ("night", "total")]))


def test_what_was_spent_is_counted_from_the_ledger(store: Store, ledger: Ledger) -> None:
    past = [
        done(1, 1.0, NOW_MS - 1_000, tenant="acme", tags=("night",)),
        done(2, 2.0, NOW_MS - 2 * DAY_MS, tenant="acme"),
        done(3, 4.0, NOW_MS - 60 * DAY_MS, tenant="acme", tags=("night",)),
        done(4, 0.5, NOW_MS - 2_000, tenant="other"),
    ]
    ledger.write(usage.add, past)
    keeper = BudgetKeeper(store, ledger, CATALOG)
    assert opened(store) == [None, None, None]
    assert keeper.look(NOW_MS) == 3
    counted = [Balance(spent=usd * NANO // 10) for usd in (15, 30, 50)]
    assert opened(store) == counted
    assert keeper.look(NOW_MS) == 0
    store.redis.flushall()
    assert keeper.look(NOW_MS) == 3
    assert opened(store) == counted


def test_the_next_window_is_open_before_it_begins(store: Store, ledger: Ledger) -> None:
    keeper = BudgetKeeper(store, ledger, CATALOG)
    before_midnight = NOW_MS // DAY_MS * DAY_MS + DAY_MS - 60_000
    assert keeper.look(before_midnight) == 4
    assert store(budgets.balances([("all", "2026-11-26")])) == [Balance()]


def test_a_budget_that_comes_later_is_opened_then(store: Store, ledger: Ledger) -> None:
    keeper = BudgetKeeper(store, ledger, Catalog())
    assert keeper.look(NOW_MS) == 0
    keeper.renew(CATALOG)
    assert keeper.look(NOW_MS) == 3


def test_tokens_are_counted_from_the_ledger(store: Store, ledger: Ledger) -> None:
    ledger.write(usage.add, [done(n, 1.0, NOW_MS - n, tenant="acme") for n in range(1, 4)])
    catalog = Catalog.model_validate({"budgets": [{"name": "t", "tokens": 100, "window": "day", "tenant": "acme"}]})
    BudgetKeeper(store, ledger, catalog).look(NOW_MS)
    assert store(budgets.balances([("t", "2026-11-25")])) == [Balance(spent=6)]


def test_the_windows_of_keys_are_opened_until_they_end(store: Store, ledger: Ledger) -> None:
    secrets = Secrets(["s" * 32])
    limits = KeyLimits(budget_usd=2, budget_tokens=50, budget_window="day")
    new = NewKey("acme", ("inference",), 1, "cli", permissions=Permissions(limits=limits))
    keeper = BudgetKeeper(store, ledger, Catalog())
    assert keeper.look(NOW_MS) == 0
    key, _ = ledger.write(keys.create, secrets, new)
    assert keeper.look(NOW_MS) == 2
    assert store(budgets.balances([(key.id, "2026-11-25"), (f"{key.id}.tokens", "2026-11-25")])) == [Balance()] * 2
    ledger.write(keys.revoke, secrets, key.id, 2, "cli")
    assert keeper.look(NOW_MS + DAY_MS) == 0


def test_a_soft_budget_is_told_of_once_in_each_window(
    store: Store, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    soft = {"name": "soft", "usd": 1, "window": "day", "tenant": "acme", "hard": False}
    catalog = Catalog.model_validate({"budgets": [soft, soft | {"name": "hard", "hard": True}]})
    ledger.write(usage.add, [done(1, 1.5, NOW_MS, tenant="acme")])
    keepers = [BudgetKeeper(store, ledger, catalog) for _ in range(2)]
    for now_ms in (NOW_MS, NOW_MS, NOW_MS + 1_000, NOW_MS + DAY_MS, NOW_MS + DAY_MS):
        for keeper in keepers:
            keeper.look(now_ms)
    assert [record.getMessage() for record in caplog.records] == [
        "the soft budget soft is used up in its window 2026-11-25"
    ]
    ((_, notice),) = store.redis.execute_command("XRANGE", budgets.NOTICES, "-", "+")
    fields = notice if isinstance(notice, dict) else dict(zip(notice[::2], notice[1::2], strict=True))
    assert fields[b"event"] == b"budget.soft_exceeded"
    assert (fields[b"budget"], fields[b"unit"], fields[b"used"]) == (b"soft", b"usd", str(15 * NANO // 10).encode())
    assert store(budgets.warnings()) == {("tenant", "usd"): 1}


DOLLARS = {"input_per_million": 0, "output_per_million": 1_000_000}
ACME = {"name": "late", "usd": 100, "window": "total", "tenant": "acme"}
MODELS = [{"name": "m", "deployments": [{"name": "d", "engine": "mock", "tier": "cloud", "price": DOLLARS}]}]


def came_in(store: Store, tenant: str, charges: str = "") -> JobSpec:
    spec = JobSpec(new_id("job"), "/v1/chat/completions", "m", tenant=tenant, max_output_tokens=5)
    (answer,) = store(transitions.accept([NewJob(spec, b"sealed", charges=charges)]))
    assert answer.verdict == "accepted"
    return spec


def late(store: Store) -> Balance | None:
    return store(budgets.balances([("late", "total")]))[0]


def test_jobs_that_were_in_before_a_budget_count_in_it(store: Store, ledger: Ledger) -> None:
    now_ms = int(time.time() * 1000)
    first, _ = came_in(store, "acme"), came_in(store, "other")
    keeper = BudgetKeeper(store, ledger, Catalog.model_validate({"models": MODELS, "budgets": [ACME]}))
    assert keeper.look(now_ms) == 1
    assert late(store) == Balance(reserved=5 * NANO)
    # One gateway hadn't read of it yet, another one had.
    second = came_in(store, "acme")
    came_in(store, "acme", f"late total {100 * NANO} {NANO} 0 usd/tenant")
    keeper.look(now_ms + 1_000)
    assert late(store) == Balance(reserved=6 * NANO)
    keeper.look(now_ms + 20_000)
    assert late(store) == Balance(reserved=11 * NANO)
    store(transitions.cancel([first.id, second.id]))
    assert late(store) == Balance(reserved=NANO)
    keeper.look(now_ms + 40_000)
    assert late(store) == Balance(reserved=NANO)


def test_what_ended_before_it_was_seen_is_taken_from_the_ledger(store: Store, ledger: Ledger) -> None:
    keeper = BudgetKeeper(store, ledger, Catalog.model_validate({"models": MODELS, "budgets": [ACME]}))
    keeper.look(NOW_MS)
    ledger.write(usage.add, [done(1, 2.0, NOW_MS, tenant="acme")])  # it had ended, and wasn't in the ledger yet
    keeper.look(NOW_MS + 1_000)
    assert late(store) == Balance()
    keeper.look(NOW_MS + 20_000)
    assert late(store) == Balance(spent=2 * NANO)


def test_jobs_of_an_earlier_window_stay_there(store: Store, ledger: Ledger) -> None:
    came_in(store, "acme")
    daily = ACME | {"window": "day"}
    keeper = BudgetKeeper(store, ledger, Catalog.model_validate({"models": MODELS, "budgets": [daily]}))
    tomorrow_ms = (int(time.time() * 1000) // DAY_MS + 1) * DAY_MS + 1_000
    assert keeper.look(tomorrow_ms) == 1
    assert store(budgets.balances([("late", window_at("day", tomorrow_ms).name)])) == [Balance()]


def test_a_server_that_forgot_the_last_second_is_told_what_the_ledger_knows(
    store: Store, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = BudgetKeeper(store, ledger, CATALOG)
    keeper.look(NOW_MS)
    keeper.look(NOW_MS + 20_000)
    ledger.write(usage.add, [done(1, 1.5, NOW_MS, tenant="acme")])
    keeper.look(NOW_MS + 120_000)
    assert opened(store)[:2] == [Balance()] * 2  # not yet settled, as far as it knows
    monkeypatch.setattr(budgets, "server", lambda: Command(("PING",), lambda _: "another"))
    keeper.look(NOW_MS + 121_000)
    assert opened(store) == [Balance(spent=15 * NANO // 10)] * 2 + [Balance()]
    # More than the ledger knows is right: it learns of it later.
    store.redis.hincrby("fabric:budget:all 2026-11-25", "spent", NANO)
    assert BudgetKeeper(store, ledger, CATALOG).look(NOW_MS + 122_000) == 0
    assert opened(store)[0] == Balance(spent=25 * NANO // 10)
