"""Finding ended jobs by what they were: the console's search. Newest first, and never through all of a year."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import Connection, Row, func, or_, select

from fabric.ledger.tables import usage

#: Earlier attempts are rows, too; here it is about the ends of jobs.
_REQUEUED = "requeued"
#: Rows of one tenant that a search looks at. More find rarer things; each costs the database some microseconds.
SEARCHED = 50_000


@dataclass(frozen=True, slots=True)
class Wanted:
    """``None``: anything. ``tag``: one of the job's tags, whole."""

    state: str | None = None
    model: str | None = None
    tier: str | None = None
    tag: str | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """The end of a job. ``*_ms``: milliseconds since the epoch."""

    job_id: str
    state: str
    model: str
    tier: str | None
    deployment: str | None
    tags: tuple[str, ...]
    batch_id: str | None
    accepted_ms: int
    finished_ms: int
    cost_usd: float
    error_code: str | None


_COLUMNS = tuple(usage.c[name] for name in Found.__slots__)


def search(connection: Connection, tenant: str, wanted: Wanted, *, limit: int, before_ms: int | None) -> list[Found]:
    """Jobs that ended before ``before_ms`` (epoch), batch lines included, among the newest ``SEARCHED``."""
    newest = select(*_COLUMNS).where(usage.c.tenant == tenant, usage.c.state != _REQUEUED)
    if before_ms is not None:
        newest = newest.where(usage.c.finished_ms < before_ms)
    rows = newest.order_by(usage.c.finished_ms.desc(), usage.c.job_id.desc()).limit(SEARCHED).subquery()
    query = select(rows)
    if wanted.state:
        query = query.where(rows.c.state == wanted.state)
    if wanted.model:
        query = query.where(rows.c.model == wanted.model)
    if wanted.tier:
        query = query.where(rows.c.tier == wanted.tier)
    if wanted.tag:
        # Tags are a JSON array: the tag as JSON, between brackets or commas, so that no part of a tag is one.
        tag = orjson.dumps(wanted.tag).decode()
        inside = func.replace(func.replace(rows.c.tags, "[", ","), "]", ",")
        query = query.where(or_(rows.c.tags == f"[{tag}]", inside.contains(f",{tag},", autoescape=True)))
    query = query.order_by(rows.c.finished_ms.desc(), rows.c.job_id.desc()).limit(limit)
    return [_found(row) for row in connection.execute(query)]


def _found(row: Row[Any]) -> Found:
    values = dict(row._mapping)
    return Found(**values | {"tags": tuple(orjson.loads(values["tags"])) if values["tags"] else ()})
