"""Writes the audit trail from busy processes: in bulk, on a thread of its own, never in anybody's way.

``note`` takes well under a microsecond or two and does no I/O. Alike events of a short while become one row
with a count, so that a flood of them can't become a flood of rows. What can't be written down, because the
ledger is away for long, is counted, and the number is written down when it is back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import Connection

from fabric.contracts.errors import Unavailable, where
from fabric.contracts.secret import Secrets
from fabric.ledger import Ledger, audit, keys
from fabric.ledger.audit import Action, Event, Head
from fabric.store import Store, audit_head

log = logging.getLogger(__name__)

#: How long events wait for their like. Longer makes fewer rows; what a crash loses is what waits.
_TOGETHER_S = 1.0
#: How long a process that stops waits for a ledger that doesn't answer. What isn't written by then is lost.
_CLOSE_S = 5.0
#: Kinds of events that may wait. Beyond it new ones are only counted.
_KINDS = 4_096
#: First uses of keys that may wait.
_KEYS = 65_536


@dataclass(slots=True)
class _Pending:
    event: Event
    count: int = 1


class Trail:
    """Safe to share between threads. ``ledger`` and ``store``, which keeps the head, are its own: it closes them."""

    def __init__(self, ledger: Ledger, secrets: Secrets, store: Store, *, together_s: float = _TOGETHER_S) -> None:
        self._ledger = ledger
        self._secrets = secrets
        self._store = store
        self._together_s = together_s
        self._lock = threading.Lock()
        self._pending: dict[tuple[object, ...], _Pending] = {}
        self._used: dict[str, int] = {}
        self._lost = 0
        self._policy: str | None = None
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def note(
        self,
        action: Action,
        actor: str,
        *,
        tenant: str | None = None,
        subject: str | None = None,
        detail: dict[str, Any] | None = None,
    ) -> None:
        """Something happened. Events that are alike in everything become one row; ``subject`` is part of that,
        so name one only where each matters."""
        kind = (action, actor, tenant, subject, orjson.dumps(detail, option=orjson.OPT_SORT_KEYS) if detail else None)
        with self._lock:
            known = self._pending.get(kind)
            if known is not None:
                known.count += 1
            elif len(self._pending) >= _KINDS:
                self._lost += 1
            else:
                event = Event(action, actor, _now_ms(), tenant=tenant, subject=subject, detail=detail)
                self._pending[kind] = _Pending(event)
        self._wake.set()

    def policy_in_force(self, policy_hash: str) -> None:
        """The catalogue, policies and privacy rules that count from here on: a row, if they aren't those of before."""
        with self._lock:
            self._policy = policy_hash
        self._wake.set()

    def first_use(self, key_id: str) -> None:
        """A key that wasn't used before, as far as this process knows."""
        with self._lock:
            if len(self._used) < _KEYS:
                self._used.setdefault(key_id, _now_ms())
        self._wake.set()

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Writes what waits, if the ledger takes it now."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout=_CLOSE_S)
        self._store.close()
        self._ledger.close()

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._stop.wait(self._together_s)
            self._wake.clear()
            try:
                self.flush()
            except Unavailable:
                self._wake.set()  # what waits still waits
            except Exception as error:  # noqa: BLE001 - without this thread nothing would be written down any more
                log.error("the audit trail can't be written: %s%s", type(error).__name__, where(error))
                self._wake.set()
            if self._stop.is_set():
                return

    def flush(self) -> None:
        """Writes down what waits, now.

        Raises:
            Unavailable: the ledger is away. Nothing is lost.
        """
        with self._lock:
            pending, used, lost, policy = self._pending, self._used, self._lost, self._policy
            self._pending, self._used, self._lost, self._policy = {}, {}, 0, None
        if not (pending or used or lost or policy):
            return
        events = [_counted(waiting) for waiting in pending.values()]
        if lost:
            events.append(Event("audit.lost", "fabric", _now_ms(), count=lost))
        try:
            head = self._ledger.write(_written, self._secrets, events, used, policy)
        except BaseException:
            self._put_back(pending, used, lost, policy)
            raise
        keep_head(self._ledger, self._store, head)

    def _put_back(
        self, pending: dict[tuple[object, ...], _Pending], used: dict[str, int], lost: int, policy: str | None
    ) -> None:
        with self._lock:
            self._policy = self._policy or policy
            for kind, newer in self._pending.items():
                if kind in pending:
                    pending[kind].count += newer.count
                elif len(pending) < _KINDS:
                    pending[kind] = newer
                else:
                    lost += newer.count
            self._pending = pending
            self._used = {**self._used, **used}
            self._lost += lost


def _counted(waiting: _Pending) -> Event:
    event = waiting.event
    return Event(event.action, event.actor, event.at_ms, event.tenant, event.subject, event.detail, count=waiting.count)


def _written(
    connection: Connection, secrets: Secrets, events: Sequence[Event], used: dict[str, int], policy: str | None
) -> Head:
    events = [*keys.used(connection, used), *events]
    if policy is not None:
        audit.take_turns(connection)  # of processes that start together one writes it
        before = (audit.last_detail(connection, "policy.changed") or {}).get("policy_hash")
        if policy != before:
            detail = {"policy_hash": policy, "before": before}
            events.append(Event("policy.changed", "fabric", _now_ms(), detail=detail))
    return audit.append(connection, secrets, events)


def keep_head(ledger: Ledger, store: Store, head: Head) -> None:
    """Remembers the head in the store, unless the trail isn't the one any more whose head is kept there: then
    that head is the evidence and stays. A store that is away keeps the head of before."""
    if not head.seq:
        return
    try:
        text = store(audit_head.kept())
        if text is not None:
            before = Head.parse(text)
            if before.seq > head.seq:
                if ledger.read(audit.hash_at, before.seq) is None:
                    log.error("the audit trail was cut short: `fabric audit verify` says where")
                return
            if ledger.read(audit.hash_at, before.seq) != before.hash:
                log.error("the audit trail isn't the one that it was: `fabric audit verify` says where")
                return
        store(audit_head.keep(head.seq, str(head)))
    except Unavailable:
        log.warning("the head of the audit trail isn't kept: the store or the ledger is away")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
