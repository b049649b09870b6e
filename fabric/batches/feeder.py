"""Hands waiting lines to the store, never more than a window of them. Feeding a line twice makes one job."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import BinaryIO

from sqlalchemy import Connection

from fabric.batches.budget_wait import hopeless
from fabric.batches.cap import CapUsedUp
from fabric.batches.input_file import open_input
from fabric.batches.request_line import BadLine, read_line, unreadable
from fabric.batches.shares import Load, shares
from fabric.batches.storage import Storage
from fabric.contracts.batch_line import error_line
from fabric.contracts.catalog import Catalog, Privacy
from fabric.contracts.errors import BudgetUsedUp, LargerThanLimit
from fabric.contracts.ids import line_job_id
from fabric.contracts.job import JobSpec
from fabric.contracts.job_seals import HomeSeals
from fabric.contracts.key import Permissions
from fabric.contracts.trace import Sampler
from fabric.ledger import Ledger, batches, lines
from fabric.ledger.batches import Batch
from fabric.ledger.lines import Outcome, WaitingLine
from fabric.privacy import screen_of
from fabric.routing import Denied, admit, budgets, label_blocks, limits, policy_hash, reading_zones
from fabric.store import Store, transitions
from fabric.store.transitions import NewJob

#: Lines of all batches together that are in the store. More lets larger fleets run dry less easily; each
#: takes its record and its payload of memory there.
WINDOW = 4_000
#: A batch is fed when this part of its share is free, so that every look at the ledger moves many lines.
_REFILL = 0.25
#: Lines of one batch in one go; others get their turn in between.
TURN_LINES = 512
#: Bounds of one call of the store: it serves nobody else while it runs.
_CALL_JOBS = 128
_CALL_BYTES = 8_000_000


#: Told of a line whose label its batch's key has raised: the batch, the label asked for, the label that it got.
Raised = Callable[[Batch, Privacy, Privacy], object]
#: Told of a line that has placeholders in it from here on.
Redacted = Callable[[Batch, JobSpec], object]


@dataclass(slots=True)
class Call:
    """Lines that go to the store together, and those among them that can't run."""

    jobs: list[NewJob] = field(default_factory=list)
    bad: list[Outcome] = field(default_factory=list)
    bytes: int = 0
    last: int = 0  #: number of the last line

    @property
    def full(self) -> bool:
        return len(self.jobs) >= _CALL_JOBS or self.bytes >= _CALL_BYTES


class Feeder:
    def __init__(
        self,
        store: Store,
        ledger: Ledger,
        storage: Storage,
        home: HomeSeals,
        catalog: Catalog,
        *,
        window: int = WINDOW,
        raised: Raised = lambda batch, asked, got: None,
        redacted: Redacted = lambda batch, spec: None,
        sampler: Sampler | None = None,
    ) -> None:
        """``home`` seals lines for the store. ``sampler``: which lines are traced; ``None``: none."""
        self._store = store
        self._ledger = ledger
        self._storage = storage
        self._home = home
        self.adopt(catalog)
        self._window = window
        self._raised = raised
        self._redacted = redacted
        self._sampler = sampler
        self._hands = ThreadPoolExecutor(1, "feeder")

    def adopt(self, catalog: Catalog) -> None:
        """For the lines that are handed over from now on."""
        self._catalog = catalog
        self._hash = policy_hash(catalog)

    def due(self, running: Sequence[Batch], in_hand: Mapping[str, int]) -> dict[str, int]:
        """Batch -> lines to hand over now."""
        loads = [Load(b.id, b.tenant, in_hand.get(b.id, 0), b.open - in_hand.get(b.id, 0)) for b in running]
        share = shares(loads, self._window)
        due: dict[str, int] = {}
        for load in loads:
            room = min(share[load.batch_id] - load.in_hand, load.waiting)
            if room > 0 and (room == load.waiting or room >= _REFILL * share[load.batch_id]):
                due[load.batch_id] = room
        return due

    def feed(self, batch: Batch, room: int) -> bool:
        """Hands over up to ``room`` lines, one turn at most; answers whether there were any.

        Raises:
            NotFound: the input file is gone.
            Unavailable: the ledger or the store is away. Lines may have been handed over: call again.
        """
        waiting = self._ledger.read(lines.waiting, batch.id, after=batch.fed_until, limit=min(room, TURN_LINES))
        if not waiting:
            return False
        permissions = Permissions.load(batch.permissions)
        last, bad = batch.fed_until, list[Outcome]()
        with open_input(self._ledger, self._storage, batch) as source:
            for call in self._handed_over(batch, self._calls(batch, permissions, waiting, source)):
                last, bad = call.last, bad + call.bad
        return last > batch.fed_until and self._ledger.write(_fed, batch, last, bad)

    def _calls(
        self, batch: Batch, permissions: Permissions, waiting: Sequence[WaitingLine], source: BinaryIO
    ) -> Iterator[Call]:
        call = Call()
        for line in waiting:
            self._put(call, batch, permissions, line, source)
            if call.full or line is waiting[-1]:
                yield call
                call = Call()

    def _handed_over(self, batch: Batch, calls: Iterable[Call]) -> Iterator[Call]:
        """The calls of which no line waits any more. While it takes one, the next one's lines are read."""
        under_way: tuple[Call, Future[bool]] | None = None
        try:
            for call in calls:
                if under_way is not None:
                    earlier, taken = under_way
                    if not taken.result():
                        return
                    yield earlier
                under_way = call, self._hands.submit(self._settled, batch, call)
            if under_way is not None and under_way[1].result():
                yield under_way[0]
        finally:
            if under_way is not None:
                wait([under_way[1]])

    def _put(
        self,
        call: Call,
        batch: Batch,
        permissions: Permissions,
        line: WaitingLine,
        source: BinaryIO,
        fit: Callable[[JobSpec], tuple[JobSpec, str]] = lambda spec: (spec, ""),
    ) -> None:
        """``fit``: what the batch's plan makes of a line, and what it reserves for it; it may refuse it."""
        call.last = line.line_no
        job_id = line_job_id(batch.id, line.line_no)
        source.seek(line.start)
        try:
            raw = source.read(line.length)
            custom_id, request = read_line(raw, batch.endpoint, self._catalog, permissions)
            if custom_id != line.custom_id:
                raise unreadable()
        except BadLine as bad:
            # It was good when the batch began: the catalogue has changed since, or the file.
            error = error_line(line.custom_id, job_id, line.line_no, bad.error, answered=True)
            call.bad.append(Outcome(line.line_no, "failed", error=error))
            return
        # A deadline of the line's own counts from here, where it begins to wait.
        spec = request.spec(
            job_id=job_id,
            tenant=batch.tenant,
            key_id=batch.key_id,
            batch_id=batch.id,
            line_no=line.line_no,
            custom_id=custom_id,
            deadline_ms=batch.expires_ms,
            accepted_under=self._hash,
            default_privacy=self._catalog.privacy.default,
            default_priority="batch",
        )
        if self._sampler is not None and (trace := self._sampler.line(job_id)):
            spec = replace(spec, trace=trace)
        asked = request.options.privacy or self._catalog.privacy.default
        found = screen_of(self._catalog).screened(spec, request)
        spec = found.spec
        if spec.privacy != asked:
            self._raised(batch, asked, spec.privacy)
        if found.placeholders:
            self._redacted(batch, spec)
        try:
            spec = admit(spec, self._catalog, self._hash, time.time_ns() // 1_000_000).spec
            spec, reserved = fit(spec)
            takes = limits.metered(spec, permissions.limits, self._catalog)
            charges = ""
            own = permissions.budgets(batch.key_id)
            if self._catalog.budgets or own:
                spec, charges = budgets.charged(spec, self._catalog, time.time_ns() // 1_000_000, own)
            charges = "\n".join(filter(None, (charges, reserved)))
        except (Denied, LargerThanLimit, BudgetUsedUp, CapUsedUp) as refused:
            error = error_line(line.custom_id, job_id, line.line_no, refused.info, answered=True)
            call.bad.append(Outcome(line.line_no, "failed", error=error))
            return
        deployments = self._catalog.by_model[spec.model].deployments
        rule = self._catalog.privacy.of(spec.privacy)
        job = NewJob(
            spec,
            self._home.payload(spec, found.payload, reading_zones(spec, deployments, rule)),
            placeholders=self._home.placeholders(spec, found.placeholders),
            blocked=label_blocks(spec, deployments, rule),
            charges=charges,
            limits=takes,
        )
        call.jobs.append(job)
        call.bytes += len(job.payload)

    def _settled(self, batch: Batch, call: Call) -> bool:
        """Whether no line of it has to wait. Some do if the store is full, or a budget or a limit: what was taken of
        these is known when they come again."""
        answers = self._store(transitions.accept(call.jobs)) if call.jobs else []
        ended = hopeless(self._store, batch, call.jobs, answers)
        call.bad += ended
        return sum(answer.verdict in ("accepted", "exists") for answer in answers) + len(ended) == len(call.jobs)


def _fed(connection: Connection, batch: Batch, last: int, bad: Sequence[Outcome]) -> bool:
    """Not if another process has fed this batch meanwhile."""
    if bad:
        batches.hold(connection, [batch.id])
    if not batches.fed(connection, batch.id, batch.fed_until, last):
        return False
    if bad:
        lines.end(connection, batch.id, bad)
    return True
