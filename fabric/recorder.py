"""The recorder: from the store's completion stream into the ledger, in bulk, each completion with one effect.

A round reads entries as a member of a consumer group, writes them in one transaction, and only then lets go
of them. A crash anywhere leaves entries that are read again, by this recorder or another one; what is in the
ledger already stays as it is. So any number of recorders may run, and die.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson
from redis.exceptions import RedisError, ResponseError
from sqlalchemy import Connection, exc

from fabric.accounting import Beside, Notes
from fabric.contracts.answer import whole
from fabric.contracts.batch_line import error_line, output_line
from fabric.contracts.catalog import Catalog
from fabric.contracts.completion import Completion
from fabric.contracts.errors import BrokenSeal, EngineError, ErrorInfo, Unavailable
from fabric.contracts.ids import new_id
from fabric.contracts.job import JobState
from fabric.contracts.job_seals import HomeSeals
from fabric.contracts.payload import load_placeholders
from fabric.ledger import Ledger, batches, lines, usage
from fabric.ledger.batches import Batch
from fabric.ledger.lines import Outcome
from fabric.ledger.usage import Note, no_note
from fabric.privacy import Placeholders
from fabric.store import Command, Store, counts, transitions
from fabric.store.reads import COMPLETIONS, completion
from fabric.store.store import unavailable

log = logging.getLogger(__name__)

T = TypeVar("T")

GROUP = "recorder"
#: Entries that can't be recorded, the newest of them, for a person to look at.
BAD = f"{COMPLETIONS}:bad"
_BAD_KEPT = 200

#: Entries of one transaction. More are fewer commits, less are shorter ones.
_MOST = 500
#: Answers may be large: fewer are read at once so that about this much is in memory.
_READ_BYTES = 8_000_000
_FIRST_READ = 16
#: An entry that its reader had for this long is taken over: the reader is dead, or its ledger is away.
TAKEOVER_MS = 5_000
_TAKEOVER_LOOK_S = 1.0
_START = b"0-0"
#: Readers that neither read nor hold anything for this long are forgotten.
_FORGET_READER_MS = 86_400_000
_FORGET_LOOK_S = 3_600.0
#: How long one read waits for entries: how late a stop may be heard.
BLOCK_MS = 1_000
#: After a small read, how long others may gather for the next one: bounds the commits per second.
_GATHER_S = 0.02
_SMALL = 64
_AWAY_S = 0.3

#: What a database says to a value that it will never take.
_UNTAKABLE = (exc.DataError, exc.IntegrityError, OverflowError, UnicodeError)


_NO_CATALOG = Catalog()


@dataclass(frozen=True, slots=True)
class _Entry:
    """One entry of the stream, and the completion in it unless it can't be read."""

    id: bytes
    fields: Any
    completion: Completion | None


class Recorder:
    """Blocking; one thread. ``recorded`` is called when batch lines got their outcome, ``ended`` with each completion;
    ``catalog`` has the prices that usage is compared with; answers of batch lines are opened with ``home``, and
    sealed again before the ledger gets them. ``announce`` writes down who is to be told
    of completions, in the transaction that keeps them."""

    def __init__(
        self,
        store: Store,
        ledger: Ledger,
        home: HomeSeals,
        *,
        catalog: Catalog = _NO_CATALOG,
        recorded: Callable[[], object] = lambda: None,
        ended: Callable[[Completion], object] = lambda completion: None,
        announce: Callable[[Connection, Sequence[Completion]], None] = lambda connection, completions: None,
        takeover_ms: int = TAKEOVER_MS,
        block_ms: int = BLOCK_MS,
    ) -> None:
        self.name = f"{socket.gethostname()}-{new_id('worker').removeprefix('worker_')}"
        self._store = store
        self._ledger = ledger
        self._home = home
        self._notes = Notes(store, catalog)
        self._privacy = catalog.privacy
        self._recorded = recorded
        self._ended = ended
        self._announce = announce
        self._takeover_ms = takeover_ms
        self._block_ms = block_ms
        self._count = _FIRST_READ
        self._cursor = _START
        self._next_takeover = 0.0
        self._next_forget = 0.0

    def renew(self, catalog: Catalog) -> None:
        """Another catalogue's prices and labels count from now on. For any thread."""
        self._notes.renew(catalog)
        self._privacy = catalog.privacy

    def run(self, stop: threading.Event) -> None:
        """Until ``stop`` is set. The store and the ledger may come and go."""
        away = False
        while not stop.is_set():
            try:
                entries = self._read(self._block_ms)
                if entries and self._insist(entries, stop) and len(entries) < _SMALL:
                    stop.wait(_GATHER_S)
                if away:
                    log.info("the recorder goes on")
                away = False
            except Unavailable as error:
                if not away:
                    log.warning("completions wait: %s", error)
                away = True
                stop.wait(_AWAY_S)
        self._leave()

    def step(self, block_ms: int = 1) -> int:
        """One read, one transaction; answers how many entries were recorded.

        Raises:
            Unavailable: the store or the ledger is away. Nothing is lost; call again later.
        """
        entries = self._read(block_ms)
        if entries:
            self._record(entries)
        return len(entries)

    def _insist(self, entries: Sequence[_Entry], stop: threading.Event) -> bool:
        """Records entries however often it takes: they are ours, nobody hands them to us again."""
        away = False
        while not stop.is_set():
            try:
                self._record(entries)
            except Unavailable as error:
                if not away:
                    log.warning("%d completions wait: %s", len(entries), error)
                away = True
                stop.wait(_AWAY_S)
            else:
                if away:
                    log.info("the completions that waited are recorded")
                return True
        return False

    # From the stream.

    def _read(self, block_ms: int) -> list[_Entry]:
        now = time.monotonic()
        if now >= self._next_forget:
            self._next_forget = now + _FORGET_LOOK_S
            self._in_group(self._forget_readers)
        if now >= self._next_takeover:
            entries = self._in_group(self._take_over)
            # As long as there is something to take over, look again at once.
            self._next_takeover = now + (0 if entries or self._cursor != _START else _TAKEOVER_LOOK_S)
            if entries:
                return self._parsed(entries)
        return self._parsed(self._in_group(lambda: self._read_new(block_ms)))

    def _read_new(self, block_ms: int) -> list[tuple[bytes, Any]]:
        answer = self._store.redis.execute_command(
            *("XREADGROUP", "GROUP", GROUP, self.name, "COUNT", self._count, "BLOCK", block_ms),
            *("STREAMS", COMPLETIONS, ">"),
        )
        if not answer:
            return []
        # A map in RESP3, pairs in RESP2; redis-py wraps a stream's entries in one more list in between.
        entries = next(iter(answer.values())) if isinstance(answer, dict) else answer[0][1]
        return entries[0] if entries and isinstance(entries[0], list) else entries

    def _take_over(self) -> list[tuple[bytes, Any]]:
        answer = self._store.redis.execute_command(
            "XAUTOCLAIM", COMPLETIONS, GROUP, self.name, self._takeover_ms, self._cursor, "COUNT", self._count
        )
        self._cursor = answer[0]
        return [(entry_id, fields) for entry_id, fields in answer[1] if fields is not None]

    def _forget_readers(self) -> list[tuple[bytes, Any]]:
        for reader in self._store.redis.xinfo_consumers(COMPLETIONS, GROUP):
            if reader["pending"] == 0 and reader["idle"] > _FORGET_READER_MS:
                self._store.redis.xgroup_delconsumer(COMPLETIONS, GROUP, reader["name"])
        return []

    def _in_group(self, act: Callable[[], T]) -> T:
        """Makes the group if the store has none: it is new, or was emptied."""
        try:
            try:
                return act()
            except ResponseError as error:
                if not str(error).startswith(("NOGROUP", "no such key")):
                    raise
                self._make_group()
                return act()
        except (RedisError, OSError) as error:
            raise unavailable(error) from error

    def _make_group(self) -> None:
        try:
            self._store.redis.execute_command("XGROUP", "CREATE", COMPLETIONS, GROUP, "0", "MKSTREAM")
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    def _parsed(self, raw: Sequence[tuple[bytes, Any]]) -> list[_Entry]:
        entries = []
        size = 0
        for entry_id, fields in raw:
            try:
                parsed = completion(entry_id, fields)
                if parsed.error:
                    _reason(parsed)
                size += len(parsed.result or b"")
            except (KeyError, ValueError, TypeError, AttributeError):
                parsed = None
            entries.append(_Entry(entry_id, fields, parsed))
        if entries:
            self._count = max(1, min(_MOST, 2 * self._count, _READ_BYTES * len(entries) // max(1, size)))
        return entries

    # Into the ledger.

    def _record(self, entries: Sequence[_Entry]) -> None:
        bad = [entry for entry in entries if entry.completion is None]
        good = [entry for entry in entries if entry.completion is not None]
        note = self._notes.of([entry.completion for entry in good if entry.completion])
        changed, refused = self._write(good, note)
        for entry in good:
            if entry.completion is not None and not entry.completion.late:
                self._ended(entry.completion)
        for entry in (*bad, *refused):
            self._set_aside(entry)
        self._let_go(entries, note)
        if changed:
            self._recorded()

    def _write(
        self, entries: Sequence[_Entry], note: Callable[[Completion], Note] = no_note
    ) -> tuple[bool, list[_Entry]]:
        """Answers whether lines changed, and the entries that the database will never take."""
        if not entries:
            return False, []
        try:
            completions = [entry.completion for entry in entries if entry.completion]
            return self._ledger.write(self._kept, completions, note), []
        except _UNTAKABLE:
            if len(entries) == 1:
                return False, list(entries)
        # One of them is to blame; the others mustn't suffer.
        half = len(entries) // 2
        changed_first, refused_first = self._write(entries[:half], note)
        changed_last, refused_last = self._write(entries[half:], note)
        return changed_first or changed_last, refused_first + refused_last

    def _kept(
        self, connection: Connection, completions: Sequence[Completion], note: Callable[[Completion], Note]
    ) -> bool:
        changed = record(connection, completions, self._home, note)
        self._announce(connection, completions)
        return changed

    def _set_aside(self, entry: _Entry) -> None:
        log.error("completion %s can't be recorded; it is kept in %s", entry.id.decode(), BAD)
        fields = entry.fields.items() if isinstance(entry.fields, dict) else _paired(entry.fields)
        flat = [part for pair in fields for part in pair]
        self._store(Command(("XADD", BAD, "MAXLEN", "~", _BAD_KEPT, "*", "entry", entry.id, *flat), bytes))

    def _let_go(self, entries: Sequence[_Entry], beside: Beside) -> None:
        """In this order: as long as the entry is there, all of it can be done again."""
        completions = [entry.completion for entry in entries if entry.completion]
        self._forget([done for done in completions if not done.late])
        amounts = counts.tally(completions)
        beside.count_errors(amounts, completions)
        beside.count_equivalents(amounts, completions)
        self._store(counts.let_go(GROUP, [entry.id for entry in entries], amounts))

    def _forget(self, ended: Sequence[Completion]) -> None:
        """Other than lines, jobs stay readable for as long as their label lets them."""
        lines_: list[str] = []
        jobs: dict[int, list[str]] = {}
        for done in ended:
            if done.spec.batch_id and done.state != JobState.DEAD:
                lines_.append(done.spec.id)
            else:
                ttl_s = self._privacy.of(done.spec.privacy).retention_s or transitions.RECORD_TTL_S
                jobs.setdefault(ttl_s, []).append(done.spec.id)
        if lines_:
            self._store(transitions.forget((), lines_))
        for ttl_s, ids in jobs.items():
            self._store(transitions.forget(ids, ttl_s=ttl_s))

    def _leave(self) -> None:
        """A reader that holds nothing leaves no trace; what one holds is taken over, as after its death."""
        try:
            held = self._store.redis.xpending_range(COMPLETIONS, GROUP, "-", "+", 1, consumername=self.name)
            if not held:
                self._store.redis.xgroup_delconsumer(COMPLETIONS, GROUP, self.name)
        except (RedisError, OSError):
            pass  # it is forgotten later


def _paired(flat: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    return list(zip(flat[::2], flat[1::2], strict=False))


def record(
    connection: Connection,
    completions: Sequence[Completion],
    home: HomeSeals,
    note: Callable[[Completion], Note] = no_note,
) -> bool:
    """Usage of every completion, outcomes of those that are batch lines; answers whether lines changed.

    Doing it again changes nothing.
    """
    of_batches: dict[str, list[Completion]] = {}
    for done in completions:
        if done.spec.batch_id is not None and done.spec.line_no is not None and not done.late:
            of_batches.setdefault(done.spec.batch_id, []).append(done)
    held = batches.hold(connection, of_batches) if of_batches else {}
    usage.add(connection, completions, note)
    changed = False
    for batch_id, batch in held.items():
        outcomes = [outcome(done, batch, home) for done in of_batches[batch_id]]
        changed |= lines.end(connection, batch_id, outcomes)
    return changed


def outcome(done: Completion, batch: Batch, home: HomeSeals) -> Outcome:
    """What becomes of the batch line behind a completion: its answer sealed, its error as it is."""
    spec = done.spec
    line_no = spec.line_no or 0
    match done.state:
        case JobState.SUCCEEDED:
            created = (done.claimed_ms or done.finished_ms) // 1000
            try:
                result = _restored(done, home)
            except BrokenSeal as broken:
                return _failed(done, line_no, broken.info)
            body = whole(spec.endpoint, spec.id, spec.model, created, result)
            answer = home.line(batch.id, line_no, output_line(spec.custom_id, spec.id, body))
            return Outcome(line_no, "completed", response=answer)
        case JobState.EXPIRED if spec.deadline_ms == batch.expires_ms:
            return Outcome(line_no, "expired")
        case JobState.CANCELLED if batch.status == "cancelling":
            return Outcome(line_no, "cancelled")
    return _failed(done, line_no, _reason(done))


def _failed(done: Completion, line_no: int, error: ErrorInfo) -> Outcome:
    line = error_line(done.spec.custom_id, done.spec.id, line_no, error, answered=True)
    return Outcome(line_no, "failed", error=line)


def _restored(done: Completion, home: HomeSeals) -> bytes:
    """The answer, opened, with what redaction took out of its line's text. Raises ``BrokenSeal``."""
    of = (done.spec.tenant, done.spec.id)
    result = home.answer(*of, done.result) if done.result else b"{}"
    if not done.placeholders:
        return result
    return Placeholders(load_placeholders(home.opened_placeholders(*of, done.placeholders))).restored(result)


def _reason(done: Completion) -> ErrorInfo:
    if done.error:
        return ErrorInfo(**orjson.loads(done.error))
    return EngineError(f"The job ended as {done.state} without a reason.").info
