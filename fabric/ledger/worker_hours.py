"""How long workers were up, busy or idle: what the hours of the operator's own machines are counted from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import Connection, func, select
from sqlalchemy.dialects import postgresql, sqlite

from fabric.ledger.sums import HOUR_MS
from fabric.ledger.tables import worker_hours as table

#: Hours that are written at the first look: as many as nobody may have looked for.
_HOURS = 24


@dataclass(frozen=True, slots=True)
class Up:
    """A live worker. ``started_ms``: milliseconds since the epoch on its own clock."""

    worker: str
    tier: str
    slots: int
    started_ms: int
    usd_per_hour: float


class Machines(NamedTuple):
    """All workers of a tier in some time. ``usd``: what their hours cost."""

    tier: str
    workers: int
    up_s: float
    usd: float


def note(connection: Connection, workers: Sequence[Up], now_ms: int, noted_ms: int = 0) -> None:
    """They are up now, and have been since they started. Saying it again, or earlier things later, changes nothing.
    ``noted_ms``: all up to then is there already."""
    rows = [row for worker in sorted(workers, key=lambda up: up.worker) for row in _hours(worker, now_ms, noted_ms)]
    if not rows:
        return
    insert = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)
    longer = func.greatest if connection.dialect.name == "postgresql" else func.max
    upsert = insert.on_conflict_do_update(
        index_elements=[table.c.worker, table.c.hour_ms],
        set_={
            "up_s": longer(table.c.up_s, insert.excluded.up_s),
            "slots": insert.excluded.slots,
            "usd_per_hour": insert.excluded.usd_per_hour,
        },
    )
    connection.execute(upsert, rows)


def _hours(worker: Up, now_ms: int, noted_ms: int) -> Iterator[dict[str, object]]:
    this_hour = now_ms // HOUR_MS * HOUR_MS
    began = max(worker.started_ms // HOUR_MS * HOUR_MS, noted_ms // HOUR_MS * HOUR_MS, this_hour - _HOURS * HOUR_MS)
    for hour_ms in range(began, this_hour + 1, HOUR_MS):
        up_ms = min(now_ms, hour_ms + HOUR_MS) - max(worker.started_ms, hour_ms)
        if up_ms > 0:
            yield {
                "worker": worker.worker,
                "hour_ms": hour_ms,
                "tier": worker.tier,
                "slots": worker.slots,
                "up_s": up_ms / 1000,
                "usd_per_hour": worker.usd_per_hour,
            }


def machines(connection: Connection, since_ms: int | None = None, until_ms: int | None = None) -> list[Machines]:
    """By tier; hours that begin in the time count whole."""
    query = select(
        table.c.tier,
        func.count(table.c.worker.distinct()),
        func.sum(table.c.up_s),
        func.sum(table.c.up_s * table.c.usd_per_hour) / 3600,
    )
    if since_ms is not None:
        query = query.where(table.c.hour_ms >= since_ms - since_ms % HOUR_MS)
    if until_ms is not None:
        query = query.where(table.c.hour_ms < until_ms)
    return [Machines(*row) for row in connection.execute(query.group_by(table.c.tier).order_by(table.c.tier))]
