"""The audit trail: who did what to which boundary. Append-only rows, each chained to the one before.

A row's ``hash`` is a keyed hash (HMAC under the fabric's secret) of the row and of the hash before it. So
whoever can write to the database but doesn't hold the secret can't change, remove, reorder or add a row
without ``verify`` saying so. Cutting off the end leaves a whole, shorter chain: that is found against a
*head* that was kept elsewhere (``fabric.trail`` keeps one in the store, ``fabric audit verify`` prints it).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson
from sqlalchemy import Connection, insert, select, text

from fabric.contracts.secret import Secrets, Tag
from fabric.ledger.tables import audit

#: What is written down. A new one is named here first.
Action = Literal[
    "key.created",
    "key.first_used",
    "key.revoked",
    "key.rotated",
    "label.raised",
    "request.blocked",
    "request.redacted",
    "job.deleted",
    "dead_letter.replayed",
    "dead_letter.dropped",
    "webhook.replayed",
    "policy.changed",
    "audit.exported",
    "audit.lost",
]

#: Any number that no other user of the same PostgreSQL database takes.
_LOCK = 0x6661756469
_GENESIS = bytes(32)
_CHUNK = 1_000
_TEXT = 128


@dataclass(frozen=True, slots=True)
class Event:
    """``actor``: a key's id, ``cli`` or ``open`` (a caller without a key). ``count``: alike events in one."""

    action: Action
    actor: str
    at_ms: int
    tenant: str | None = None
    subject: str | None = None
    detail: dict[str, Any] | None = None
    count: int = 1


@dataclass(frozen=True, slots=True)
class Head:
    """The last row: enough to find out later whether rows behind it were cut off. ``seq`` 0: no row yet."""

    seq: int
    hash: bytes

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash.hex()}"

    @classmethod
    def parse(cls, text: str) -> Head:
        """Raises ``ValueError``."""
        seq, _, digest = text.partition(":")
        head = cls(int(seq), bytes.fromhex(digest))
        if head.seq < 0 or len(head.hash) != len(_GENESIS):
            raise ValueError("not a head")
        return head


NO_ROWS = Head(0, _GENESIS)


@dataclass(frozen=True, slots=True)
class Row:
    """As stored. ``detail`` is JSON text."""

    seq: int
    at_ms: int
    action: str
    actor: str
    tenant: str | None
    subject: str | None
    detail: str | None
    count: int
    secret_id: str
    hash: bytes

    def sealed(self, before: bytes) -> bytes:
        """What the hash is of."""
        said = (self.at_ms, self.action, self.actor, self.tenant, self.subject, self.detail, self.count)
        return before + orjson.dumps((self.seq, *said))

    def object(self) -> dict[str, Any]:
        """As exported."""
        return {
            "seq": self.seq,
            "at_ms": self.at_ms,
            "action": self.action,
            "actor": self.actor,
            "tenant": self.tenant,
            "subject": self.subject,
            "detail": orjson.loads(self.detail) if self.detail else None,
            "count": self.count,
            "secret_id": self.secret_id,
            "hash": self.hash.hex(),
        }


_COLUMNS = tuple(audit.c[name] for name in Row.__slots__)


def append(connection: Connection, secrets: Secrets, events: Sequence[Event]) -> Head:
    """Adds rows at the end, in a transaction that writes; answers the new head.

    Writers of all processes take turns, from here to the end of their transactions: SQLite lets one write
    at a time anyway, PostgreSQL is asked to.
    """
    take_turns(connection)
    last = head(connection)
    rows = []
    for event in events:
        row = Row(
            seq=last.seq + 1,
            at_ms=event.at_ms,
            action=event.action,
            actor=_clean(event.actor),
            tenant=None if event.tenant is None else _clean(event.tenant),
            subject=None if event.subject is None else _clean(event.subject),
            detail=orjson.dumps(event.detail, option=orjson.OPT_SORT_KEYS).decode() if event.detail else None,
            count=event.count,
            secret_id=secrets.id,
            hash=b"",
        )
        last = Head(row.seq, secrets.tag("audit", row.sealed(last.hash)).value)
        rows.append({name: getattr(row, name) for name in Row.__slots__} | {"hash": last.hash})
    if rows:
        connection.execute(insert(audit), rows)
    return last


def take_turns(connection: Connection) -> None:
    """From here to the end of the transaction nobody else adds rows."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})


def last_detail(connection: Connection, action: Action) -> dict[str, Any] | None:
    """What the newest row of that kind says."""
    query = select(audit.c.detail).where(audit.c.action == action).order_by(audit.c.seq.desc()).limit(1)
    found = connection.execute(query).scalar()
    return None if found is None else dict(orjson.loads(found))


def _clean(value: str) -> str:
    """PostgreSQL takes no zero bytes in text."""
    return value.replace("\0", "")[:_TEXT]


def head(connection: Connection) -> Head:
    row = connection.execute(select(audit.c.seq, audit.c.hash).order_by(audit.c.seq.desc()).limit(1)).first()
    return Head(row.seq, bytes(row.hash)) if row else NO_ROWS


def hash_at(connection: Connection, seq: int) -> bytes | None:
    """``None``: there is no such row."""
    if seq == 0:
        return _GENESIS
    found = connection.execute(select(audit.c.hash).where(audit.c.seq == seq)).scalar()
    return None if found is None else bytes(found)


def rows(connection: Connection, *, after: int = 0) -> Iterator[Row]:
    """In order, from behind row ``after``, a chunk at a time."""
    while True:
        query = select(*_COLUMNS).where(audit.c.seq > after).order_by(audit.c.seq).limit(_CHUNK)
        chunk = connection.execute(query).all()
        for row in chunk:
            values = dict(row._mapping)
            yield Row(**{**values, "hash": bytes(values["hash"])})
        if len(chunk) < _CHUNK:
            return
        after = chunk[-1].seq


#: Problems that are told one by one; of the rest only the number.
_TOLD = 100


@dataclass(slots=True)
class Verdict:
    """``problems``: one sentence each; none means that the trail is whole."""

    rows: int = 0
    head: Head = NO_ROWS
    found: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        return not self.found

    def complain(self, problem: str) -> None:
        self.found += 1
        if self.found <= _TOLD:
            self.problems.append(problem)


def verify(connection: Connection, secrets: Secrets, heads: Sequence[Head] = ()) -> Verdict:
    """Looks at every row. ``heads``: such as were seen before; each must still be part of the chain."""
    verdict = Verdict()
    wanted = {known.seq: known.hash for known in heads}
    last = NO_ROWS
    for row in rows(connection):
        if row.seq != last.seq + 1:
            verdict.complain(_missing(last.seq + 1, row.seq - 1))
        if row.secret_id not in secrets:
            verdict.complain(f"row {row.seq} was sealed with secret {row.secret_id}, which FABRIC_SECRET doesn't hold")
        elif not secrets.vouches("audit", row.sealed(last.hash), Tag(row.secret_id, row.hash)):
            verdict.complain(f"row {row.seq} isn't what was written there after the row before it")
        if wanted.pop(row.seq, row.hash) != row.hash:
            verdict.complain(f"row {row.seq} isn't the one that was the head when its hash was kept")
        last = Head(row.seq, row.hash)
        verdict.rows += 1
    verdict.head = last
    for seq in sorted(wanted):
        if seq > last.seq:
            verdict.complain(f"the end was cut off: {_missing(last.seq + 1, seq)}")
    return verdict


def _missing(first: int, last: int) -> str:
    return f"row {first} is missing" if first == last else f"rows {first} to {last} are missing"
