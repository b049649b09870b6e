"""Lines that found no room in a budget: which of them wait, and which end."""

from __future__ import annotations

import pytest

from fabric.batches.budget_wait import may_yet_fit
from fabric.contracts.budget import Charge
from fabric.store.budgets import Balance

EXPIRES_MS = 1_000_000
KEY = ("pot", "w")


@pytest.mark.parametrize(
    ("line", "balance", "waits"),
    [
        ("pot w 10 4 0 usd/all", Balance(reserved=10, spent=0), True),  # reserved by others: may come back
        ("pot w 10 4 0 usd/all", Balance(reserved=4, spent=6), True),  # just enough, if the others settle for nothing
        ("pot w 10 4 0 usd/all", Balance(reserved=0, spent=7), False),  # spent, and never begins again
        ("pot w 10 4 2000000 tokens/key", Balance(0, 10), False),  # begins again when the batch is over
        ("pot w 10 4 1000000 tokens/key", Balance(0, 10), False),  # at that very moment
        ("pot w 10 4 999999 tokens/key", Balance(0, 10), True),  # begins again before that
        ("pot w - 4 0 usd/tenant", Balance(0, 10), True),  # soft: keeps nobody out
        ("pot w 10 4 0 usd/all", None, True),  # isn't counted yet
    ],
)
def test_what_is_reserved_may_come_back_and_what_is_spent_does_not(
    line: str, balance: Balance | None, waits: bool
) -> None:
    assert may_yet_fit(Charge.parse(line), {KEY: balance}, EXPIRES_MS) is waits
