"""Statements about usage: one row for each attempt that ended a job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import Connection, Row, and_, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from fabric.contracts.completion import Completion
from fabric.ledger.tables import usage

_CODE_CHARS = 64


@dataclass(frozen=True, slots=True)
class Used:
    """A row. Tokens as the engine counted them; ``*_ms``: milliseconds since the epoch; ``*_s``: seconds."""

    job_id: str
    attempt: int
    tenant: str
    key_id: str | None
    tags: tuple[str, ...]
    endpoint: str
    model: str
    privacy: str
    priority: str
    policy: str | None
    tier: str | None
    deployment: str | None
    worker: str | None
    state: str
    fault: str | None
    error_code: str | None
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cost_usd: float
    engine_s: float
    first_token_s: float | None
    accepted_ms: int
    dispatched_ms: int | None
    claimed_ms: int | None
    finished_ms: int
    batch_id: str | None
    line_no: int | None


_COLUMNS = tuple(usage.c[name] for name in Used.__slots__)


def add(connection: Connection, completions: Sequence[Completion]) -> None:
    """Stores what was used; attempts that are there already stay as they are."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    # In one order, so that two recorders with the same completions wait for each other only one way.
    rows = [_row(c) for c in sorted(completions, key=lambda c: (c.spec.id, c.attempt))]
    if rows:
        connection.execute(insert(usage).on_conflict_do_nothing(), rows)


def _row(completion: Completion) -> dict[str, Any]:
    spec, measures = completion.spec, completion.measures
    error = orjson.loads(completion.error) if completion.error else {}
    code = error.get("code")
    return {
        "job_id": spec.id,
        "attempt": completion.attempt,
        "tenant": spec.tenant,
        "key_id": spec.key_id,
        "tags": orjson.dumps(spec.tags).decode() if spec.tags else None,
        "endpoint": spec.endpoint,
        "model": spec.model,
        "privacy": spec.privacy,
        "priority": spec.priority,
        "policy": spec.policy,
        "tier": completion.tier,
        "deployment": completion.deployment,
        "worker": completion.worker,
        "state": completion.state,
        "fault": error.get("fault"),
        # A provider's code may be any text.
        "error_code": str(code).replace("\0", "")[:_CODE_CHARS] if code else None,
        "input_tokens": measures.usage.input_tokens,
        "cached_input_tokens": measures.usage.cached_input_tokens,
        "output_tokens": measures.usage.output_tokens,
        "reasoning_tokens": measures.usage.reasoning_tokens,
        "cost_usd": measures.cost_usd,
        "engine_s": measures.engine_s,
        "first_token_s": measures.first_token_s,
        "accepted_ms": completion.accepted_ms,
        "dispatched_ms": completion.dispatched_ms,
        "claimed_ms": completion.claimed_ms,
        "finished_ms": completion.finished_ms,
        "batch_id": spec.batch_id,
        "line_no": spec.line_no,
    }


def of_job(connection: Connection, tenant: str, job_id: str) -> list[Used]:
    """What one job used, the oldest attempt first; empty when it is unknown or another tenant's."""
    query = select(*_COLUMNS).where(usage.c.job_id == job_id, usage.c.tenant == tenant).order_by(usage.c.attempt)
    return [_used(row) for row in connection.execute(query)]


def page(
    connection: Connection, tenant: str, *, limit: int, after: tuple[int, str, int] | None = None
) -> tuple[list[Used], bool]:
    """The newest first, those behind the row ``after`` (``mark`` of the last one seen); and whether there are more."""
    finished, job, attempt = usage.c.finished_ms, usage.c.job_id, usage.c.attempt
    query = select(*_COLUMNS).where(usage.c.tenant == tenant)
    if after is not None:
        at, job_id, number = after
        same_job = and_(finished == at, job == job_id, attempt < number)
        query = query.where(or_(finished < at, and_(finished == at, job < job_id), same_job))
    rows = connection.execute(query.order_by(finished.desc(), job.desc(), attempt.desc()).limit(limit + 1)).all()
    return [_used(row) for row in rows[:limit]], len(rows) > limit


def mark(used: Used) -> tuple[int, str, int]:
    """Where a page goes on."""
    return used.finished_ms, used.job_id, used.attempt


def _used(row: Row[Any]) -> Used:
    values = dict(row._mapping)
    values["tags"] = tuple(orjson.loads(values["tags"])) if values["tags"] else ()
    return Used(**values)
