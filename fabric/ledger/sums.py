"""Sums of usage by hour and by day (UTC), kept with every row that is recorded: a year of traffic is quick to read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

from fabric.contracts.job import JobState
from fabric.ledger.tables import SUM_AMOUNTS, SUM_COUNTS, SUM_KEYS

if TYPE_CHECKING:
    from fabric.ledger.usage import Used

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
_SUCCEEDED = JobState.SUCCEEDED.value
_SUMMED = SUM_COUNTS + SUM_AMOUNTS

_Key = tuple[Any, ...]
_Sums = dict[_Key, list[Any]]


def add(connection: Connection, rows: Sequence[Used]) -> None:
    """Adds rows that were not added before."""
    hours: _Sums = {}
    for row in rows:
        values = _values(row)
        _gather(hours, _key(row, ""), values)
        for tag in set(row.tags):
            _gather(hours, _key(row, tag), values)
    days: _Sums = {}
    for (_, tag, at, tenant, key, endpoint, *place), total in hours.items():
        day = at - at % DAY_MS
        _gather(days, ("day", tag, day, tenant, key, endpoint, *place), total)
        _gather(days, ("brief", tag, day, tenant, "", "", *place), total)
    # In one order, so that recorders wait for each other only one way.
    added = [(*key, *total) for key, total in sorted((hours | days).items())]
    connection.exec_driver_sql(_statement(connection.dialect.name), added)


def _key(row: Used, tag: str) -> _Key:
    at = row.finished_ms - row.finished_ms % HOUR_MS
    place = (row.endpoint, row.model, row.tier or "", row.deployment or "")
    return ("hour", tag, at, row.tenant, row.key_id or "", *place)


def _values(row: Used) -> tuple[Any, ...]:
    """In the order of ``SUM_COUNTS`` and ``SUM_AMOUNTS``."""
    cost, expected = row.cost_usd, row.expected_cost_usd
    failed = row.requests if row.state != _SUCCEEDED else 0
    compared = cost if row.cloud_equivalent_usd else 0.0
    foreseen = (0.0, 0.0, 0.0) if expected is None else (expected, cost, abs(expected - cost))
    return (
        *(row.requests, failed, 1 if row.attempt > 0 else 0, row.estimated, row.input_tokens, row.cached_input_tokens),
        *(row.output_tokens, row.reasoning_tokens, row.engine_s, cost, row.machine_usd, row.cloud_equivalent_usd),
        *(compared, row.baseline_usd, *foreseen),
    )


def _gather(sums: _Sums, key: _Key, values: Iterable[Any]) -> None:
    total = sums.get(key)
    if total is None:
        sums[key] = list(values)
    else:
        for place, value in enumerate(values):
            if value:
                total[place] += value


@cache
def _statement(dialect: str) -> str:
    names = SUM_KEYS + _SUMMED
    places = ", ".join(("%s" if dialect == "postgresql" else "?",) * len(names))
    more = ", ".join(f"{name} = usage_sums.{name} + excluded.{name}" for name in _SUMMED)
    return (
        f"INSERT INTO usage_sums ({', '.join(names)}) VALUES ({places}) "
        f"ON CONFLICT ({', '.join(SUM_KEYS)}) DO UPDATE SET {more}"
    )
