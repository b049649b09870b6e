"""Statements about usage: one row for each attempt, and the one that ended the job says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import orjson
from sqlalchemy import Connection, Row, and_, delete, func, or_, select

from fabric.contracts.completion import Completion, EarlierAttempt
from fabric.contracts.job import JobState, Measures
from fabric.ledger import sums
from fabric.ledger.tables import usage

_CODE_CHARS = 64
#: The state of an attempt that wasn't its job's last.
REQUEUED = "requeued"
_SUCCEEDED, _DEAD = JobState.SUCCEEDED.value, JobState.DEAD.value
#: Rows that one transaction deletes: fewer let others write sooner.
_PRUNED_AT_ONCE = 5_000


class Used(NamedTuple):
    """A row. Tokens as the engine counted them; ``*_ms``: milliseconds since the epoch; ``*_s``: seconds.

    The decision that an attempt rests on is known by the job's id and the attempt's number.
    """

    job_id: str
    attempt: int  #: 0: ended before any dispatch; below 0: what that attempt cost after it had been given up
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
    state: str  #: the job's, or ``requeued``
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
    requests: int
    estimated: int
    served_model: str | None
    policy_hash: str | None
    price_version: str | None
    machine_usd: float
    cloud_equivalent_usd: float
    baseline_usd: float
    expected_cost_usd: float | None
    deadline_ms: int | None


class Note(NamedTuple):
    """What the recorder knows of a job beyond its completion."""

    policy_hash: str | None = None
    expected_cost_usd: float | None = None
    cloud_equivalent_usd: float = 0.0
    baseline_usd: float = 0.0


def no_note(completion: Completion) -> Note:
    return Note()


_COLUMNS = tuple(usage.c[name] for name in Used._fields)
_TAGS = Used._fields.index("tags")


def add(
    connection: Connection, completions: Sequence[Completion], note: Callable[[Completion], Note] = no_note
) -> None:
    """Stores what was used, in rows and in sums; attempts that are there already stay as they are, and count no
    second time."""
    rows: list[Used] = []
    # In one order, so that two recorders with the same completions wait for each other only one way.
    for done in sorted(completions, key=_order):
        last_try = done.last_try
        rows += [_earlier(done, attempt) for attempt in done.earlier if attempt is not last_try or _parked(attempt)]
        rows.append(_last(done, note(done)))
    if rows and (new := _insert(connection, rows)):
        sums.add(connection, new)


def _order(completion: Completion) -> tuple[str, int]:
    return completion.spec.id, completion.attempt


def _insert(connection: Connection, rows: Sequence[Used]) -> Sequence[Used]:
    """Answers those that weren't there before."""
    # Past SQLAlchemy's own preparation of each row, which takes longer than the database does.
    statement = _insert_statement(connection.dialect.name)
    stored = [_stored(row) for row in rows]

    def insert(values: Any) -> int:
        return connection.exec_driver_sql(statement, values, execution_options={"preserve_rowcount": True}).rowcount

    savepoint = connection.begin_nested()
    if insert(stored) == len(rows):
        savepoint.commit()
        return rows
    # Some came a second time, after a crash: then it matters which.
    savepoint.rollback()
    return [row for row, values in zip(rows, stored, strict=True) if insert(values) == 1]


@cache
def _insert_statement(dialect: str) -> str:
    places = ", ".join(("%s" if dialect == "postgresql" else "?",) * len(Used._fields))
    return f"INSERT INTO usage ({', '.join(Used._fields)}) VALUES ({places}) ON CONFLICT DO NOTHING"


def _stored(row: Used) -> tuple[Any, ...]:
    tags = orjson.dumps(row.tags).decode() if row.tags else None
    return (*row[:_TAGS], tags, *row[_TAGS + 1 :])


def _parked(attempt: EarlierAttempt) -> bool:
    """Parked and replayed since: its row is there already."""
    return attempt.outcome == _DEAD


def _last(done: Completion, note: Note) -> Used:
    # One that was parked and replayed was counted when it was parked.
    requests = int(not done.late and done.spec.hedge_of is None and not any(map(_parked, done.earlier)))
    # What would have been paid elsewhere, or was foreseen: of answers, not of failures.
    elsewhere = note[1:] if done.state == _SUCCEEDED else (None, 0.0, 0.0)
    # The end of a job that waited for its next try goes to the row of the last one that it had.
    at = done if done.last_try is None else done.last_try
    return _made(
        done,
        (done.attempt, at.tier, at.deployment, at.worker, done.state),
        orjson.loads(done.error) if done.error else {},
        at.measures,
        (at.dispatched_ms, at.claimed_ms, done.finished_ms),
        requests,
        Note(note.policy_hash, *elsewhere),
    )


def _earlier(done: Completion, attempt: EarlierAttempt) -> Used:
    state = _DEAD if _parked(attempt) else REQUEUED
    return _made(
        done,
        (attempt.number, attempt.tier, attempt.deployment, attempt.worker, state),
        attempt.error or {},
        attempt.measures,
        (attempt.dispatched_ms, attempt.claimed_ms, attempt.ended_ms),
        0,
        Note(attempt.policy_hash),
    )


def _made(
    done: Completion,
    try_: tuple[int, str | None, str | None, str | None, str],
    error: dict[str, Any],
    measures: Measures,
    times: tuple[int | None, int | None, int],
    requests: int,
    note: Note,
) -> Used:
    # By place, not by name: this runs once for every line of every batch.
    spec, used, (number, tier, deployment, worker, state) = done.spec, measures.usage, try_
    return Used(
        spec.id,
        number,
        spec.tenant,
        spec.key_id,
        spec.tags,
        spec.endpoint,
        spec.model,
        spec.privacy,
        spec.priority,
        spec.policy,
        tier,
        deployment,
        worker,
        state,
        error.get("fault"),
        _code(error),
        used.input_tokens,
        used.cached_input_tokens,
        used.output_tokens,
        used.reasoning_tokens,
        measures.cost_usd,
        measures.engine_s,
        measures.first_token_s,
        done.accepted_ms,
        *times,
        spec.batch_id,
        spec.line_no,
        requests,
        int(used.estimated),
        measures.served_model or None,
        note.policy_hash,
        measures.price_version or None,
        measures.machine_usd,
        note.cloud_equivalent_usd,
        note.baseline_usd,
        note.expected_cost_usd,
        spec.deadline_ms,
    )


def _code(error: dict[str, Any]) -> str | None:
    code = error.get("code")
    # A provider's code may be any text.
    return str(code).replace("\0", "")[:_CODE_CHARS] if code else None


def of_job(connection: Connection, tenant: str, job_id: str) -> list[Used]:
    """What one job used, the oldest attempt first; empty when it is unknown or another tenant's."""
    query = select(*_COLUMNS).where(usage.c.job_id == job_id, usage.c.tenant == tenant).order_by(usage.c.attempt)
    return [_row(row) for row in connection.execute(query)]


def page(
    connection: Connection, tenant: str, *, limit: int, after: tuple[int, str, int] | None = None
) -> tuple[list[Used], bool]:
    """Ends of jobs, the newest first, those behind the row ``after`` (``mark`` of the last one seen); and whether
    there are more."""
    finished, job, attempt = usage.c.finished_ms, usage.c.job_id, usage.c.attempt
    query = select(*_COLUMNS).where(usage.c.tenant == tenant, usage.c.state != REQUEUED)
    if after is not None:
        at, job_id, number = after
        same_job = and_(finished == at, job == job_id, attempt < number)
        query = query.where(or_(finished < at, and_(finished == at, job < job_id), same_job))
    rows = connection.execute(query.order_by(finished.desc(), job.desc(), attempt.desc()).limit(limit + 1)).all()
    return [_row(row) for row in rows[:limit]], len(rows) > limit


def finished_since(connection: Connection, since_ms: int, *, limit: int) -> list[Used]:
    """Ends of all tenants' jobs, the newest first."""
    query = select(*_COLUMNS).where(usage.c.finished_ms >= since_ms, usage.c.requests == 1)
    rows = connection.execute(query.order_by(usage.c.finished_ms.desc(), usage.c.job_id).limit(limit))
    return [_row(row) for row in rows]


def billed_of_batch(connection: Connection, batch_id: str) -> float:
    """US dollars that its lines' tokens did cost so far; hours of machines aren't counted."""
    billed = func.coalesce(func.sum(usage.c.cost_usd - usage.c.machine_usd), 0.0)
    return float(connection.execute(select(billed).where(usage.c.batch_id == batch_id)).scalar_one())


def mark(used: Used) -> tuple[int, str, int]:
    """Where a page goes on."""
    return used.finished_ms, used.job_id, used.attempt


def prune(connection: Connection, before_ms: int) -> int:
    """Deletes some of the rows of attempts that ended before; answers how many. Sums stay."""
    tenant = ""
    # From tenant to tenant along the index: a list of all of them would read all rows.
    while tenant := connection.execute(select(func.min(usage.c.tenant)).where(usage.c.tenant > tenant)).scalar() or "":
        old = select(usage.c.job_id).where(usage.c.tenant == tenant, usage.c.finished_ms < before_ms)
        jobs = connection.execute(old.order_by(usage.c.finished_ms).limit(_PRUNED_AT_ONCE)).scalars().all()
        if jobs:
            gone = delete(usage).where(usage.c.job_id.in_(sorted(set(jobs))), usage.c.finished_ms < before_ms)
            return connection.execute(gone).rowcount
    return 0


def _row(row: Row[Any]) -> Used:
    values = Used._make(row)
    tags: Any = values.tags
    return values._replace(tags=tuple(orjson.loads(tags)) if tags else ())
