"""Statements about the lines of batches.

A line is ``open`` until it has its outcome, and never changes after that:

open ──▶ completed | failed | expired | cancelled

``completed`` and ``failed`` lines hold what is written to the output or error file. ``expired`` and
``cancelled`` ones hold nothing: what is written of them is the same for all. Rows live as long as their
batch: when its files are written they are removed.

Whoever changes lines holds their batch (``batches.hold``) first, so that counts and lines agree.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, and_, delete, func, select, update

from fabric.ledger.tables import OPEN, batch_lines, batches

State = Literal["open", "completed", "failed", "expired", "cancelled"]

_lines = batch_lines.c


@dataclass(frozen=True, slots=True)
class NewLine:
    """``start`` and ``length``: where it lies in the input file, in bytes. ``error`` for a failed one."""

    line_no: int
    custom_id: str | None
    start: int
    length: int
    state: State
    error: bytes | None = None


@dataclass(frozen=True, slots=True)
class WaitingLine:
    """An open line, and where it lies in the input file."""

    line_no: int
    custom_id: str | None
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """``response``: a line of the output file, sealed; ``error``: one of the error file."""

    line_no: int
    state: State
    response: bytes | None = None
    error: bytes | None = None


@dataclass(frozen=True, slots=True)
class EndedLine:
    """A line with its outcome."""

    line_no: int
    custom_id: str | None
    start: int
    length: int
    state: State
    response: bytes | None
    error: bytes | None


# Past SQLAlchemy's own preparation of each row, which takes longer than the database does.
_ADD = (
    "INSERT INTO batch_lines (batch_id, line_no, custom_id, start, length, state, error)"
    " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)
_SETTLE = "UPDATE batch_lines SET state = ?, response = ?, error = ? WHERE batch_id = ? AND line_no = ?"


def _in_dialect(statement: str, dialect: str) -> str:
    return statement.replace("?", "%s") if dialect == "postgresql" else statement


def add(connection: Connection, batch_id: str, lines: Sequence[NewLine]) -> None:
    """Stores lines; those that are there already stay as they are."""
    rows: Any = [(batch_id, o.line_no, o.custom_id, o.start, o.length, o.state, o.error) for o in lines]
    if rows:
        connection.exec_driver_sql(_in_dialect(_ADD, connection.dialect.name), rows)


def counts(connection: Connection, batch_id: str) -> dict[State, int]:
    """How many lines are in each state that has any."""
    query = select(_lines.state, func.count()).where(_lines.batch_id == batch_id).group_by(_lines.state)
    return dict(connection.execute(query).all())


def in_hand(connection: Connection) -> dict[str, int]:
    """Batch -> lines that were handed to the store and have no outcome, of all unfinished batches that have any."""
    query = (
        select(_lines.batch_id, func.count())
        .join(batches, and_(batches.c.id == _lines.batch_id, _lines.line_no <= batches.c.fed_until))
        .where(OPEN, batches.c.status.in_(("in_progress", "cancelling")))
        .group_by(_lines.batch_id)
    )
    return dict(connection.execute(query).all())


def waiting(connection: Connection, batch_id: str, *, after: int, limit: int) -> list[WaitingLine]:
    """Open lines behind line ``after``, in order."""
    query = (
        select(_lines.line_no, _lines.custom_id, _lines.start, _lines.length)
        .where(_lines.batch_id == batch_id, OPEN, _lines.line_no > after)
        .order_by(_lines.line_no)
        .limit(limit)
    )
    return [WaitingLine(*row) for row in connection.execute(query)]


def handed_over(connection: Connection, batch_id: str, *, until: int, limit: int, after: int = 0) -> list[int]:
    """Numbers of open lines in ``after < number <= until``, in order."""
    query = (
        select(_lines.line_no)
        .where(_lines.batch_id == batch_id, OPEN, _lines.line_no > after, _lines.line_no <= until)
        .order_by(_lines.line_no)
        .limit(limit)
    )
    return list(connection.scalars(query))


def settle(connection: Connection, batch_id: str, outcomes: Collection[Outcome]) -> tuple[int, int]:
    """Gives open lines their outcome; answers how many were completed and how many came to another end.

    Lines that have one keep it; of two for the same line the first counts.
    """
    first: dict[int, Outcome] = {}
    for outcome in outcomes:
        first.setdefault(outcome.line_no, outcome)
    query = select(_lines.line_no).where(_lines.batch_id == batch_id, OPEN, _lines.line_no.in_(sorted(first)))
    changed = [first[number] for number in sorted(connection.scalars(query))]
    if changed:
        rows: Any = [(o.state, o.response, o.error, batch_id, o.line_no) for o in changed]
        connection.exec_driver_sql(_in_dialect(_SETTLE, connection.dialect.name), rows)
    completed = sum(outcome.state == "completed" for outcome in changed)
    return completed, len(changed) - completed


def close(connection: Connection, batch_id: str, state: Literal["expired", "cancelled"]) -> int:
    """Ends all lines that are open; answers how many."""
    statement = update(batch_lines).where(_lines.batch_id == batch_id, OPEN).values(state=state)
    return connection.execute(statement).rowcount


def ended(connection: Connection, batch_id: str, *, after: int, limit: int) -> list[EndedLine]:
    """Lines with their outcome behind line ``after``, in order."""
    query = (
        select(*(_lines[name] for name in EndedLine.__slots__))
        .where(_lines.batch_id == batch_id, _lines.line_no > after, _lines.state != "open")
        .order_by(_lines.line_no)
        .limit(limit)
    )
    return [EndedLine(*row) for row in connection.execute(query)]


def remove(connection: Connection, batch_id: str, *, limit: int) -> int:
    """Takes lines away, the first ones first; answers how many."""
    doomed = select(_lines.line_no).where(_lines.batch_id == batch_id).order_by(_lines.line_no).limit(limit)
    last = select(func.max(doomed.subquery().c.line_no)).scalar_subquery()
    return connection.execute(delete(batch_lines).where(_lines.batch_id == batch_id, _lines.line_no <= last)).rowcount


def leftovers(connection: Connection) -> list[str]:
    """Batches that have ended and still have lines: a crash came between the two."""
    any_line = select(_lines.line_no).where(_lines.batch_id == batches.c.id).exists()
    ends = ("completed", "failed", "expired", "cancelled")
    return list(connection.scalars(select(batches.c.id).where(batches.c.status.in_(ends), any_line)))
