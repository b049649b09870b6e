"""The made-up year of traffic, in a short form: its sums are those of its rows, and its questions have answers."""

from __future__ import annotations

from pathlib import Path

from benchmarks.usage_data import QUESTIONS, TENANTS, fill, traffic
from sqlalchemy import func, select

from fabric.ledger import Ledger, costs, upgrade
from fabric.ledger.costs import Filter
from fabric.ledger.tables import usage


def test_a_short_year(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'usage.sqlite3'}"
    upgrade(url)
    ledger = Ledger(url)
    fill(ledger, 3_000)
    answers = {name: ledger.read(costs.grouped, which, groups)[0] for name, which, groups in QUESTIONS}
    assert all(answers.values())
    rows = answers["a year by tenant, model and day"]
    assert 5 < len({row["tenant"] for row in rows}) <= TENANTS
    raw = select(func.count(), func.sum(usage.c.input_tokens), func.sum(usage.c.cost_usd))
    count, tokens, cost = ledger.read(lambda connection: connection.execute(raw).one())
    (whole,), _ = ledger.read(costs.grouped, Filter())
    assert (whole["requests"], whole["input_tokens"]) == (count, tokens) == (3_000, tokens)
    assert abs(whole["cost_usd"] - cost) < 1e-6
    assert sum(row["cost_usd"] for row in rows) - cost < 1e-6
    ledger.close()


def test_it_is_the_same_every_time() -> None:
    assert list(traffic(10)) == list(traffic(10))
