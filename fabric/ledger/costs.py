"""Reads of usage and cost from the sums: whole hours (UTC), grouped as asked. A year is read by its days.

>>> rows, after = ledger.read(costs.grouped, Filter(tenant="acme"), ("model", "day"), limit=100)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, and_, func, literal, or_, select, tuple_

from fabric.ledger.sums import DAY_MS, HOUR_MS
from fabric.ledger.tables import SUM_AMOUNTS, SUM_COUNTS
from fabric.ledger.tables import usage_sums as table

Group = Literal["tenant", "key", "tag", "model", "deployment", "tier", "endpoint", "day", "hour"]
GROUPS: tuple[Group, ...] = ("tenant", "key", "tag", "model", "deployment", "tier", "endpoint", "day", "hour")
#: What each row adds up. The names are the table's.
SUMMED = SUM_COUNTS + SUM_AMOUNTS

_TEXTS: dict[str, ColumnElement[Any]] = {
    "tenant": table.c.tenant,
    "key": table.c.key_id,
    "tag": table.c.tag,
    "model": table.c.model,
    "deployment": table.c.deployment,
    "tier": table.c.tier,
    "endpoint": table.c.endpoint,
}


@dataclass(frozen=True, slots=True)
class Filter:
    """``None``: any. Times are milliseconds since the epoch; an hour that has begun counts whole: ``since_ms`` is
    rounded down and ``until_ms``, which is excluded, up to an hour."""

    since_ms: int | None = None
    until_ms: int | None = None
    tenant: str | None = None
    key: str | None = None
    tag: str | None = None
    model: str | None = None
    deployment: str | None = None
    tier: str | None = None
    endpoint: str | None = None

    @property
    def since(self) -> int | None:
        return None if self.since_ms is None else self.since_ms // HOUR_MS * HOUR_MS

    @property
    def until(self) -> int | None:
        return None if self.until_ms is None else -(-self.until_ms // HOUR_MS) * HOUR_MS


Row = dict[str, Any]
#: The names of a group, in the order of ``group_by``: where a page goes on.
Mark = tuple[str | int, ...]


def grouped(
    connection: Connection,
    which: Filter,
    group_by: Sequence[Group] = (),
    *,
    limit: int | None = None,
    after: Mark | None = None,
) -> tuple[list[Row], Mark | None]:
    """Rows in the order of their groups' names, and the mark of the next page if there is one.

    A row has its groups' names (``day`` and ``hour`` as milliseconds since the epoch, what a row doesn't have as
    ``None``) and the fields of ``SUMMED``. Grouped by tag a request counts once for each of its tags, and those
    without tags are left out. Without groups it is one row.
    """
    keys = [_key(name).label(name) for name in group_by]
    query = select(*keys, *(func.coalesce(func.sum(table.c[name]), 0).label(name) for name in SUMMED))
    query = query.where(_times(which, group_by), *_conditions(which, by_tag="tag" in group_by))
    if keys:
        query = query.group_by(*(key.element for key in keys)).order_by(*(key.element for key in keys))
    if after is not None:
        query = query.where(tuple_(*(key.element for key in keys)) > tuple_(*map(literal, after)))
    if limit is not None:
        query = query.limit(limit + 1)
    found = connection.execute(query).all()
    more = limit is not None and len(found) > limit
    shown = found[:limit] if more else found
    mark = tuple(shown[-1][: len(keys)]) if more else None
    return [_row(row, group_by) for row in shown], mark


def _key(name: Group) -> ColumnElement[Any]:
    match name:
        case "day":
            return table.c.at_ms - table.c.at_ms % DAY_MS
        case "hour":
            return table.c.at_ms + 0
    return _TEXTS[name]


def _conditions(which: Filter, *, by_tag: bool) -> list[ColumnElement[bool]]:
    conditions = [
        _TEXTS[name] == value
        for name in ("tenant", "key", "model", "deployment", "tier", "endpoint")
        if (value := getattr(which, name)) is not None
    ]
    if which.tag is not None:
        return [*conditions, table.c.tag == which.tag]
    return [*conditions, table.c.tag != "" if by_tag else table.c.tag == ""]


def _times(which: Filter, group_by: Sequence[Group]) -> ColumnElement[bool]:
    """Whole days from the sums by day, and the hours before and behind them from those by hour."""
    since, until = which.since, which.until
    first = None if since is None else -(-since // DAY_MS) * DAY_MS
    last = None if until is None else until // DAY_MS * DAY_MS
    within_a_day = first is not None and last is not None and first > last
    if "hour" in group_by or within_a_day:
        return _between("hour", since, until)
    by_key = {"key", "endpoint"} & {*group_by} or which.key is not None or which.endpoint is not None
    parts = [_between("day" if by_key else "brief", first, last)]
    if since is not None and since != first:
        parts.append(_between("hour", since, first))
    if until is not None and until != last:
        parts.append(_between("hour", last, until))
    return or_(*parts)


def _between(period: str, since: int | None, until: int | None) -> ColumnElement[bool]:
    conditions: list[ColumnElement[bool]] = [table.c.period == period]
    if since is not None:
        conditions.append(table.c.at_ms >= since)
    if until is not None:
        conditions.append(table.c.at_ms < until)
    return and_(*conditions)


def _row(row: Any, group_by: Sequence[Group]) -> Row:
    values = dict(row._mapping)
    none = {name: None for name in group_by if values[name] == ""}
    # PostgreSQL sums into decimals.
    counts = {name: int(values[name]) for name in SUM_COUNTS}
    return {**values, **none, **counts, **{name: float(values[name]) for name in SUM_AMOUNTS}}
