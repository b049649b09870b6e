"""Ended jobs are found by state, model, tier and tag, one tenant's alone, on each kind of database."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import insert

from fabric.ledger import Ledger
from fabric.ledger.job_search import Wanted, search
from fabric.ledger.tables import usage

ROW: dict[str, Any] = {
    **{"attempt": 1, "tenant": "t", "endpoint": "/v1/chat/completions", "model": "small", "privacy": "internal"},
    **{"priority": "batch", "tier": "cpu", "deployment": "d", "state": "succeeded", "input_tokens": 1},
    **{"cached_input_tokens": 0, "output_tokens": 1, "reasoning_tokens": 0, "cost_usd": 0.5, "engine_s": 0.1},
    **{"accepted_ms": 1, "tags": None},
}


@pytest.fixture
def filled(ledger_url: str) -> Ledger:
    ledger = Ledger(ledger_url)
    changes: list[dict[str, Any]] = [
        {"tags": '["red"]'},
        {"tags": '["redder","50%"]', "state": "failed"},
        {"tags": '["blue","red"]', "tier": "gpu"},
        {"model": "org/large"},
        {"state": "requeued"},
        {"tenant": "other", "tags": '["red"]'},
    ]
    rows = [ROW | {"job_id": f"job_{n}", "finished_ms": 10 * n} | changed for n, changed in enumerate(changes)]
    with ledger.writing() as connection:
        connection.execute(insert(usage), rows)
    return ledger


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (Wanted(), [3, 2, 1, 0]),
        (Wanted(tag="red"), [2, 0]),
        (Wanted(tag="red", tier="cpu"), [0]),
        (Wanted(tag="50%"), [1]),
        (Wanted(tag="%"), []),
        (Wanted(tag='re"d'), []),
        (Wanted(state="failed"), [1]),
        (Wanted(model="org/large"), [3]),
        (Wanted(state="requeued"), []),
    ],
)
def test_what_is_found(filled: Ledger, wanted: Wanted, found: list[int]) -> None:
    rows = filled.read(search, "t", wanted, limit=10, before_ms=None)
    assert [row.job_id for row in rows] == [f"job_{n}" for n in found]


def test_a_page_goes_on_before_a_time(filled: Ledger) -> None:
    assert [row.job_id for row in filled.read(search, "t", Wanted(), limit=1, before_ms=20)] == ["job_1"]
    assert filled.read(search, "t", Wanted(tag="red"), limit=1, before_ms=None)[0].tags == ("blue", "red")
