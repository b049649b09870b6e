"""Statements about the lines of batches.

A line is ``open`` until it has its outcome, and never changes after that:

open ──▶ completed | failed | expired | cancelled

``completed`` and ``failed`` lines hold what is written to the output or error file. ``expired`` and
``cancelled`` ones hold nothing: what is written of them is the same for all. Rows live as long as their
batch: when its files are written they are removed.

Whoever changes lines holds their batch (``batches.hold``) first, so that counts and lines agree.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, and_, delete, func, insert, select, update

from fabric.ledger.batches import Batch
from fabric.ledger.batches import count as count_ends
from fabric.ledger.tables import OPEN, PLACED, UNPLACED, batch_groups, batch_lines, batches

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
    group_no: int | None = None  #: of a batch that is planned as a whole


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
    "INSERT INTO batch_lines (batch_id, line_no, custom_id, start, length, state, error, group_no)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)
_PLACE = "UPDATE batch_lines SET place = ? WHERE batch_id = ? AND line_no = ? AND state = 'open'"
_SETTLE = "UPDATE batch_lines SET state = ?, response = ?, error = ? WHERE batch_id = ? AND line_no = ?"


def _in_dialect(statement: str, dialect: str) -> str:
    return statement.replace("?", "%s") if dialect == "postgresql" else statement


def add(connection: Connection, batch_id: str, lines: Sequence[NewLine]) -> None:
    """Stores lines; those that are there already stay as they are."""
    rows: Any = [(batch_id, o.line_no, o.custom_id, o.start, o.length, o.state, o.error, o.group_no) for o in lines]
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


def handed_over(connection: Connection, batch: Batch, *, limit: int, after: int = 0) -> list[int]:
    """Numbers of open lines that were handed to the store, behind line ``after``, in order."""
    in_the_store = PLACED if batch.planned else _lines.line_no <= batch.fed_until
    query = (
        select(_lines.line_no)
        .where(_lines.batch_id == batch.id, OPEN, _lines.line_no > after, in_the_store)
        .order_by(_lines.line_no)
        .limit(limit)
    )
    return list(connection.scalars(query))


# Of batches that are planned as a whole: their lines are handed over as their plan wants it, not in order.


def placed(connection: Connection, batch_ids: Collection[str]) -> dict[str, dict[tuple[int, str], int]]:
    """Batch -> group and place -> open lines that were handed to the store for there."""
    query = (
        select(_lines.batch_id, _lines.group_no, _lines.place, func.count())
        .where(_lines.batch_id.in_(sorted(batch_ids)), PLACED)
        .group_by(_lines.batch_id, _lines.group_no, _lines.place)
    )
    found: dict[str, dict[tuple[int, str], int]] = {}
    for batch_id, group_no, place, count in connection.execute(query):
        found.setdefault(batch_id, {})[group_no, place] = count
    return found


def unplaced(connection: Connection, batch_id: str) -> dict[int, int]:
    """Group -> open lines that weren't handed to the store."""
    query = select(_lines.group_no, func.count()).where(_lines.batch_id == batch_id, UNPLACED).group_by(_lines.group_no)
    return dict(connection.execute(query).all())


def of_group(connection: Connection, batch_id: str, group_no: int, *, limit: int) -> list[WaitingLine]:
    """Open lines of a group that weren't handed to the store, in order."""
    query = (
        select(_lines.line_no, _lines.custom_id, _lines.start, _lines.length)
        .where(_lines.batch_id == batch_id, _lines.group_no == group_no, UNPLACED)
        .order_by(_lines.line_no)
        .limit(limit)
    )
    return [WaitingLine(*row) for row in connection.execute(query)]


def place(connection: Connection, batch_id: str, places: Collection[tuple[int, str]]) -> None:
    """Lines, by number, that were handed to the store, each for its place."""
    rows: Any = [(where, batch_id, line_no) for line_no, where in places]
    if rows:
        connection.exec_driver_sql(_in_dialect(_PLACE, connection.dialect.name), rows)


def add_groups(connection: Connection, batch_id: str, specs: Mapping[int, bytes]) -> None:
    """Number -> the job that stands for the group. What is there already is replaced."""
    connection.execute(delete(batch_groups).where(batch_groups.c.batch_id == batch_id))
    rows = [{"batch_id": batch_id, "number": number, "spec": spec.decode()} for number, spec in specs.items()]
    if rows:
        connection.execute(insert(batch_groups), rows)


def groups(connection: Connection, batch_id: str) -> dict[int, str]:
    query = select(batch_groups.c.number, batch_groups.c.spec).where(batch_groups.c.batch_id == batch_id)
    return dict(connection.execute(query.order_by(batch_groups.c.number)).all())


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


def end(connection: Connection, batch_id: str, outcomes: Collection[Outcome]) -> bool:
    """The same, and the batch counts them; answers whether any line changed."""
    completed, failed = settle(connection, batch_id, outcomes)
    if completed or failed:
        count_ends(connection, batch_id, completed=completed, failed=failed)
    return bool(completed or failed)


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
    connection.execute(delete(batch_groups).where(batch_groups.c.batch_id == batch_id))
    doomed = select(_lines.line_no).where(_lines.batch_id == batch_id).order_by(_lines.line_no).limit(limit)
    last = select(func.max(doomed.subquery().c.line_no)).scalar_subquery()
    return connection.execute(delete(batch_lines).where(_lines.batch_id == batch_id, _lines.line_no <= last)).rowcount


def leftovers(connection: Connection) -> list[str]:
    """Batches that have ended and still have lines: a crash came between the two."""
    any_line = select(_lines.line_no).where(_lines.batch_id == batches.c.id).exists()
    ends = ("completed", "failed", "expired", "cancelled")
    return list(connection.scalars(select(batches.c.id).where(batches.c.status.in_(ends), any_line)))
