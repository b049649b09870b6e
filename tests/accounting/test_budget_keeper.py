"""Windows are opened with what the ledger knows, also after the store has lost its memory."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from fabric.accounting.budget_keeper import BudgetKeeper
from fabric.contracts.budget import NANO
from fabric.contracts.catalog import Catalog
from fabric.contracts.completion import Completion
from fabric.contracts.job import JobSpec, JobState, Measures, Usage
from fabric.contracts.key import Permissions
from fabric.contracts.limits import KeyLimits
from fabric.contracts.secret import Secrets
from fabric.ledger import Ledger, keys, usage
from fabric.ledger.keys import NewKey
from fabric.store import Store, budgets
from fabric.store.budgets import Balance

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
