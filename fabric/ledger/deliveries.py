"""Statements about deliveries of webhooks: each event once for each webhook that wants it.

waiting ──▶ delivered
   │  ▲
   ▼  └── replay ── parked
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, delete, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from fabric.contracts.errors import NotFound
from fabric.contracts.webhook import Event, batch_event
from fabric.ledger.tables import batches, ended_batches
from fabric.ledger.tables import webhook_deliveries as table

State = Literal["waiting", "delivered", "parked"]
_PRUNED = 500


@dataclass(frozen=True, slots=True)
class Delivery:
    """Times: milliseconds since the epoch. ``next_ms``: not before, where it waits."""

    id: str
    webhook: str
    event_id: str
    type: str
    tenant: str
    subject: str
    body: bytes
    state: State
    tries: int
    created_ms: int
    next_ms: int
    last_status: int | None
    last_error: str | None
    ended_ms: int | None


def add(connection: Connection, wanted: Sequence[tuple[str, Event]], now_ms: int) -> None:
    """Webhooks' names and events. Those that are there stay as they are."""
    if not wanted:
        return
    rows = [
        {
            "id": f"{webhook}:{event.id}",
            "webhook": webhook,
            "event_id": event.id,
            "type": event.type,
            "tenant": event.tenant,
            "subject": event.subject,
            "body": event.body(),
            "state": "waiting",
            "created_ms": now_ms,
            "next_ms": now_ms,
        }
        for webhook, event in wanted
    ]
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    connection.execute(dialect.insert(table).on_conflict_do_nothing(index_elements=[table.c.id]), rows)


def ended(connection: Connection) -> list[Event]:
    """Batches that have ended since the last look; forgotten with the transaction."""
    found = connection.execute(
        select(batches).join(ended_batches, ended_batches.c.id == batches.c.id).order_by(batches.c.id)
    ).all()
    if not found:
        return []
    connection.execute(delete(ended_batches).where(ended_batches.c.id.in_([row.id for row in found])))
    return [
        batch_event(
            row.id,
            row.status,
            row.tenant,
            getattr(row, f"{row.status}_ms"),
            {"total": row.total, "completed": row.completed, "failed": row.failed},
        )
        for row in found
    ]


def any_ended(connection: Connection) -> bool:
    return connection.execute(select(ended_batches.c.id).limit(1)).first() is not None


def any_due(connection: Connection, webhook: str, now_ms: int) -> bool:
    return connection.execute(select(table.c.id).where(_due(webhook, now_ms)).limit(1)).first() is not None


def take(connection: Connection, webhook: str, now_ms: int, until_ms: int, limit: int) -> list[Delivery]:
    """Deliveries that are due, the longest first; until ``until_ms`` nobody else takes them."""
    query = select(table).where(_due(webhook, now_ms)).order_by(table.c.next_ms, table.c.id).limit(limit)
    rows = connection.execute(query.with_for_update(skip_locked=True)).all()
    if rows:
        ids = [row.id for row in rows]
        connection.execute(update(table).where(table.c.id.in_(ids)).values(next_ms=until_ms))
    return [_delivery(row) for row in rows]


def _due(webhook: str, now_ms: int) -> Any:
    return (table.c.state == "waiting") & (table.c.webhook == webhook) & (table.c.next_ms <= now_ms)


def park_orphans(connection: Connection, webhooks: Sequence[str], now_ms: int) -> None:
    """Deliveries that wait for webhooks that there aren't any more."""
    connection.execute(
        update(table)
        .where(table.c.state == "waiting", table.c.webhook.not_in(webhooks))
        .values(state="parked", last_error="the webhook isn't configured any more", ended_ms=now_ms)
    )


@dataclass(frozen=True, slots=True)
class Tried:
    """What became of a try. ``next_ms``: of the next one, where it goes on waiting."""

    id: str
    state: State
    status: int | None
    error: str | None
    next_ms: int = 0


def note(connection: Connection, tried: Iterable[Tried], now_ms: int) -> None:
    for one in tried:
        connection.execute(
            update(table)
            .where(table.c.id == one.id, table.c.state == "waiting")
            .values(
                state=one.state,
                tries=table.c.tries + 1,
                last_status=one.status,
                last_error=one.error,
                next_ms=one.next_ms,
                ended_ms=None if one.state == "waiting" else now_ms,
            )
        )


def page(
    connection: Connection, *, state: State | None, webhook: str | None, before: tuple[int, str] | None, limit: int
) -> list[Delivery]:
    """Newest first."""
    query = select(table).order_by(table.c.created_ms.desc(), table.c.id.desc()).limit(limit)
    if state is not None:
        query = query.where(table.c.state == state)
    if webhook is not None:
        query = query.where(table.c.webhook == webhook)
    if before is not None:
        query = query.where(tuple_(table.c.created_ms, table.c.id) < before)
    return [_delivery(row) for row in connection.execute(query)]


def replay(connection: Connection, delivery_id: str, now_ms: int) -> Delivery:
    """It is sent again, from the start, whatever became of it before.

    Raises:
        NotFound: there is none.
    """
    connection.execute(
        update(table)
        .where(table.c.id == delivery_id)
        .values(state="waiting", tries=0, created_ms=now_ms, next_ms=now_ms, ended_ms=None)
    )
    row = connection.execute(select(table).where(table.c.id == delivery_id)).first()
    if row is None:
        raise NotFound("There is no such delivery.")
    return _delivery(row)


def prune(connection: Connection, before_ms: int) -> int:
    """Forgets some of those that ended before; answers how many."""
    old = select(table.c.id).where(table.c.ended_ms < before_ms).limit(_PRUNED)
    return connection.execute(delete(table).where(table.c.id.in_(old))).rowcount


def _delivery(row: Any) -> Delivery:
    return Delivery(**{name: getattr(row, name) for name in Delivery.__dataclass_fields__})
