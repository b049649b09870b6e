"""Statements about batches, and the batch as the OpenAI API shows it.

validating ──▶ in_progress ──▶ finalizing ──▶ completed | expired
    │  │            │
    │  └──▶ failed  └────────▶ cancelling ──▶ cancelled      (also from validating)
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import orjson
from sqlalchemy import Connection, Row, and_, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from fabric.contracts.errors import Conflict, NotFound
from fabric.ledger.tables import PLACED, batch_lines, batches, ended_batches

Status = Literal["validating", "in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled"]
#: Batches that the batch service has work with.
UNFINISHED: tuple[Status, ...] = ("validating", "in_progress", "finalizing", "cancelling")

_STAMPS = ("in_progress", "expires", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")


_ENDS = ("completed", "failed", "expired", "cancelled")


@dataclass(frozen=True, slots=True)
class NewBatch:
    """``expires_ms``: from ``fabric.batches.window.expires_ms``. ``fingerprint``: hash of what was asked,
    so that an idempotency key can't mean two things."""

    id: str
    tenant: str
    key_id: str | None
    endpoint: str
    input_file_id: str
    completion_window: str
    metadata: dict[str, str] | None
    created_ms: int
    expires_ms: int
    idempotency_key: str | None = None
    fingerprint: str | None = None
    permissions: str | None = None  #: ``Permissions.dump()`` of the key
    options: str | None = None  #: ``BatchOptions.dump()``


@dataclass(frozen=True, slots=True)
class Batch:
    """A row, as the batch service needs it. Times: milliseconds since the epoch."""

    id: str
    tenant: str
    key_id: str | None
    endpoint: str
    input_file_id: str
    completion_window: str
    metadata: dict[str, str] | None
    status: Status
    total: int
    completed: int
    failed: int
    fed_until: int
    created_ms: int
    expires_ms: int
    in_progress_ms: int | None
    finalizing_ms: int | None
    completed_ms: int | None
    failed_ms: int | None
    expired_ms: int | None
    cancelling_ms: int | None
    cancelled_ms: int | None
    output_file_id: str | None
    error_file_id: str | None
    errors: list[dict[str, Any]] | None
    permissions: str | None = None
    options: str | None = None
    plan: str | None = None  #: JSON

    @property
    def planned(self) -> bool:
        """Whether its lines are placed together, by a plan."""
        return self.options is not None

    @property
    def open(self) -> int:
        """Lines without an outcome."""
        return self.total - self.completed - self.failed


_COLUMNS = tuple(batches.c[name] for name in Batch.__slots__)


def batch_object(batch: Batch) -> dict[str, Any]:
    """The batch as the OpenAI API shows it. Times: seconds since the epoch."""
    stamps = {f"{name}_at": _seconds(getattr(batch, f"{name}_ms")) for name in _STAMPS}
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": {"object": "list", "data": batch.errors} if batch.errors else None,
        "input_file_id": batch.input_file_id,
        "completion_window": batch.completion_window,
        "status": batch.status,
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "created_at": _seconds(batch.created_ms),
        **stamps,
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
        "metadata": batch.metadata,
        **({"fabric": _planned(batch)} if batch.options is not None else {}),
    }


def _planned(batch: Batch) -> dict[str, Any]:
    """What was asked of the batch as a whole, and the newest plan; ``None`` before its lines were read."""
    return {**orjson.loads(batch.options or b"{}"), "plan": orjson.loads(batch.plan) if batch.plan else None}


def _seconds(ms: int | None) -> int | None:
    return None if ms is None else ms // 1000


def _batch(row: Row[Any]) -> Batch:
    values = dict(row._mapping)
    for name in ("metadata", "errors"):
        values[name] = orjson.loads(values[name]) if values[name] else None
    return Batch(**values)


def create(connection: Connection, new: NewBatch) -> tuple[Batch, bool]:
    """Stores a batch in ``validating``; answers it and whether it is new.

    Call ``files.get`` in the same transaction first: it holds the input file in place.

    Raises:
        Conflict: the idempotency key was used for another request.
    """
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    row = {name: getattr(new, name) for name in NewBatch.__slots__}
    row["metadata"] = orjson.dumps(new.metadata).decode() if new.metadata is not None else None
    connection.execute(insert(batches).on_conflict_do_nothing(), row | {"status": "validating"})
    known = batches.c.id == new.id
    if new.idempotency_key is not None:
        known = or_(known, and_(batches.c.tenant == new.tenant, batches.c.idempotency_key == new.idempotency_key))
    found = connection.execute(select(*_COLUMNS, batches.c.fingerprint).where(known)).one()
    values = found._mapping
    if values["id"] != new.id and values["fingerprint"] != new.fingerprint:
        raise Conflict("This Idempotency-Key was used for another request; use a new key.", code="idempotency_conflict")
    batch = find(connection, values["id"])
    assert batch is not None
    return batch, batch.id == new.id


def get(connection: Connection, tenant: str, batch_id: str) -> Batch:
    """
    Raises:
        NotFound: there is no such batch, or it is another tenant's.
    """
    batch = find(connection, batch_id)
    if batch is None or batch.tenant != tenant:
        raise NotFound(f"No batch found with id '{batch_id}'.", param="id")
    return batch


def find(connection: Connection, batch_id: str) -> Batch | None:
    row = connection.execute(select(*_COLUMNS).where(batches.c.id == batch_id)).first()
    return _batch(row) if row else None


def page(connection: Connection, tenant: str, *, limit: int, after: str | None = None) -> tuple[list[Batch], bool]:
    """Batches, newest first, those older than the batch ``after``; and whether there are more.

    Raises:
        NotFound: there is no batch ``after``.
    """
    query = select(*_COLUMNS).where(batches.c.tenant == tenant)
    if after is not None:
        mark = get(connection, tenant, after).created_ms
        older = and_(batches.c.created_ms == mark, batches.c.id < after)
        query = query.where(or_(batches.c.created_ms < mark, older))
    order = (batches.c.created_ms.desc(), batches.c.id.desc())
    rows = connection.execute(query.order_by(*order).limit(limit + 1)).all()
    return [_batch(row) for row in rows[:limit]], len(rows) > limit


def cancel(connection: Connection, tenant: str, batch_id: str, now_ms: int) -> Batch:
    """Asks for the end of a batch; the batch service brings it about (wake it). Twice is once.

    Raises:
        NotFound: there is no such batch.
        Conflict: it has ended, or its results are being written already.
    """
    moved = connection.execute(
        update(batches)
        .where(batches.c.id == batch_id, batches.c.tenant == tenant)
        .where(batches.c.status.in_(("validating", "in_progress")))
        .values(status="cancelling", cancelling_ms=now_ms)
    ).rowcount
    batch = get(connection, tenant, batch_id)
    if not moved and batch.status not in ("cancelling", "cancelled"):
        raise Conflict(f"A batch that is {batch.status} can't be cancelled.")
    return batch


def unfinished(connection: Connection, *, limit: int = 1000) -> list[Batch]:
    """Batches with work left, oldest first."""
    query = select(*_COLUMNS).where(batches.c.status.in_(UNFINISHED)).order_by(batches.c.created_ms).limit(limit)
    return [_batch(row) for row in connection.execute(query)]


def advance(
    connection: Connection, batch_id: str, expected: Status, status: Status, /, **values: int | str | None
) -> bool:
    """Moves a batch on if it is where it is expected to be."""
    statement = update(batches).where(batches.c.id == batch_id, batches.c.status == expected)
    moved = connection.execute(statement.values(status=status, **values)).rowcount == 1
    if moved and status not in UNFINISHED:
        connection.execute(insert(ended_batches).values(id=batch_id))
    return moved


def fail(connection: Connection, batch_id: str, errors: list[dict[str, Any]], now_ms: int) -> bool:
    """A batch that can't start: its input can't be read as one."""
    text = orjson.dumps(errors).decode()
    return advance(connection, batch_id, "validating", "failed", failed_ms=now_ms, errors=text)


def hold(connection: Connection, batch_ids: Collection[str]) -> dict[str, Batch]:
    """Keeps the batches as they are until the transaction ends; answers those that exist.

    Whoever changes lines or counts does it under this lock. Taken in one order: nobody waits in a circle.
    """
    query = select(*_COLUMNS).where(batches.c.id.in_(sorted(batch_ids))).order_by(batches.c.id).with_for_update()
    return {row.id: _batch(row) for row in connection.execute(query)}


def fed(connection: Connection, batch_id: str, after: int, line_no: int) -> bool:
    """Lines ``after < number <= line_no`` are in the store; not if the mark isn't at ``after`` any more."""
    statement = update(batches).where(batches.c.id == batch_id, batches.c.fed_until == after)
    return connection.execute(statement.values(fed_until=line_no)).rowcount == 1


def unfed(connection: Connection, batch_ids: Collection[str]) -> None:
    """The store has lost jobs of these batches: their open lines are handed over again."""
    which = sorted(batch_ids)
    connection.execute(update(batches).where(batches.c.id.in_(which)).values(fed_until=0))
    connection.execute(update(batch_lines).where(batch_lines.c.batch_id.in_(which), PLACED).values(place=None))


def planned_since(connection: Connection, since_ms: int) -> set[str]:
    """Ids of all tenants' batches that were planned as a whole, and had not ended before."""
    alive = or_(*(batches.c[f"{stamp}_ms"] >= since_ms for stamp in _ENDS), batches.c.status.in_(UNFINISHED))
    return set(connection.execute(select(batches.c.id).where(batches.c.options.is_not(None), alive)).scalars())


def keep_plan(connection: Connection, batch_id: str, plan: bytes) -> None:
    """``plan``: JSON. The newest is shown."""
    connection.execute(update(batches).where(batches.c.id == batch_id).values(plan=plan.decode()))


def count(connection: Connection, batch_id: str, *, completed: int, failed: int) -> None:
    """Adds lines that got their outcome in this transaction."""
    changes = {"completed": batches.c.completed + completed, "failed": batches.c.failed + failed}
    connection.execute(update(batches).where(batches.c.id == batch_id).values(changes))
