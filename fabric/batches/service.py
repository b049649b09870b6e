"""The batch service: looks at every unfinished batch and brings it one step on, again and again.

It is woken when a batch is created or cancelled and when lines get their outcome. Every step may be done
twice, so a crash anywhere is made good by the next look.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Literal, ParamSpec

from sqlalchemy import Connection

from fabric.batches import wake
from fabric.batches.assemble import assemble, free
from fabric.batches.expand import Limits, expand
from fabric.batches.feeder import WINDOW, Raised, Redacted
from fabric.batches.lease import TERM_MS, Lease
from fabric.batches.loss import STILL_S, Loss
from fabric.batches.planned_feeder import Due, PlannedFeeder
from fabric.batches.planning import EVERY_S, Hands, Planner
from fabric.batches.storage import Storage
from fabric.batches.works import Works
from fabric.contracts.catalog import Catalog
from fabric.contracts.errors import FabricError, Unavailable
from fabric.contracts.ids import line_job_id
from fabric.contracts.job_seals import HomeSeals
from fabric.contracts.trace import Sampler
from fabric.ledger import Ledger, batches, lines
from fabric.ledger.batches import Batch
from fabric.store import Store, transitions
from fabric.store.disk import Disk

log = logging.getLogger(__name__)

P = ParamSpec("P")

#: Looks without being woken this often: for the clock, and in case a call was lost with a killed store.
LOOK_S = 1.0
#: Calls that come within this time are answered together.
_GATHER_S = 0.05
_STANDBY_S = 0.5
_AWAY_S = 0.3
#: How long jobs of a batch that expired or was cancelled may take to come home with what they have.
HOMECOMING_MS = 5_000
#: How long a batch that failed in an unforeseen way is left alone.
_SORE_S = 10.0
_CANCEL_CALL = 500


class BatchService:
    """Blocking; one thread. Several services may run: the one that has the lease works, the others stand by."""

    def __init__(
        self,
        store: Store,
        ledger: Ledger,
        storage: Storage,
        home: HomeSeals,
        catalog: Catalog,
        *,
        limits: Limits | None = None,
        window: int = WINDOW,
        term_ms: int = TERM_MS,
        still_s: float = STILL_S,
        homecoming_ms: int = HOMECOMING_MS,
        look_s: float = LOOK_S,
        replan_s: float = EVERY_S,
        raised: Raised = lambda batch, asked, got: None,
        redacted: Redacted = lambda batch, spec: None,
        sampler: Sampler | None = None,
        now_ms: Callable[[], int] = lambda: int(time.time() * 1000),
        renewed: Callable[[], Catalog | None] = lambda: None,
        disk: Disk | None = None,
    ) -> None:
        """``renewed``: the catalogue to go on with, when it has changed. ``disk``: of an embedded store, which is fed
        nothing new when it has little room."""
        self._store = store
        self._ledger = ledger
        self._storage = storage
        self._home = home
        self._catalog = catalog
        self._limits = limits or Limits()
        self._homecoming_ms = homecoming_ms
        self._look_s = look_s
        self._now_ms = now_ms
        self._renewed = renewed
        self._disk = disk
        self._lease = Lease(store, term_ms=term_ms)
        self._feeder = PlannedFeeder(
            store, ledger, storage, home, catalog, window=window, raised=raised, redacted=redacted, sampler=sampler
        )
        self._planner = Planner(store, ledger, catalog, window=window, every_s=replan_s, now_ms=now_ms)
        self._loss = Loss(store, ledger, still_s=still_s)
        #: Batches whose files are being read or written.
        self._works = Works()
        #: Batch -> when it may be looked at again.
        self._sore: dict[str, float] = {}
        self._working = False

    def run(self, stop: threading.Event) -> None:
        """Until ``stop`` is set. The store and the ledger may come and go."""
        away = False
        while not stop.is_set():
            try:
                self._once(stop)
                if away:
                    log.info("the batch service goes on")
                away = False
            except Unavailable as error:
                if not away:
                    log.warning("batches wait: %s", error)
                away = True
                self._works.drop_all()
                stop.wait(_AWAY_S)
        self._works.drop_all()
        try:
            self._lease.release()
        except Unavailable:
            pass  # it ends by itself

    def _once(self, stop: threading.Event) -> None:
        if not self._lease.hold():
            self._stand_down()
            stop.wait(_STANDBY_S)
            return
        if not self._working:
            self._take_office()
        if self.round():
            return
        self._store(wake.wait(self._look_s))
        self._store(wake.clear())
        stop.wait(_GATHER_S)

    def round(self) -> bool:
        """One look at everything; answers whether there is more to do at once.

        Raises:
            Unavailable: the ledger or the store is away. Nothing is lost; call again later.
        """
        if changed := self._renewed():
            self._catalog = changed
            self._feeder.adopt(changed)
            self._planner.adopt(changed)
        unfinished = self._ledger.read(batches.unfinished)
        in_hand = self._ledger.read(lines.in_hand)
        planned = [batch.id for batch in unfinished if batch.planned]
        hands = self._ledger.read(lines.placed, planned) if planned else {}
        in_hand |= {batch_id: sum(places.values()) for batch_id, places in hands.items()}
        if self._loss.find([batch for batch in unfinished if batch.status == "in_progress"], in_hand):
            return True
        now = time.monotonic()
        self._sore = {batch_id: until for batch_id, until in self._sore.items() if until > now}
        unfinished = [batch for batch in unfinished if batch.id not in self._sore]
        busy = self._feed(unfinished, in_hand, hands)
        for batch in unfinished:
            busy |= self._guarded(batch.id, self._tend, batch, in_hand.get(batch.id, 0))
        return self._step_works() or busy

    def _feed(self, unfinished: Sequence[Batch], in_hand: Mapping[str, int], hands: Mapping[str, Hands]) -> bool:
        if self._disk is not None and self._disk.is_low():
            return False
        now = self._now_ms()
        running = [batch for batch in unfinished if batch.status == "in_progress" and now < batch.expires_ms]
        for batch in self._planner.begin([batch for batch in running if batch.planned]):
            self._guarded(batch.id, self._planner.plan, batch, hands.get(batch.id, {}))
        due = self._feeder.due(running, in_hand)
        fed = False
        for batch in running:
            if batch.id in due and self._lease.hold():
                if batch.planned:
                    fed |= self._guarded(batch.id, self._feed_planned, batch, hands.get(batch.id, {}), due[batch.id])
                else:
                    fed |= self._guarded(batch.id, self._feeder.feed, batch, due[batch.id])
        return fed

    def _feed_planned(self, batch: Batch, hands: Hands, most: int) -> bool:
        due = self._planner.due(batch, hands, most)
        if not due:
            return False

        def handed_over(one: Due, count: int) -> None:
            self._planner.handed_over(batch, one, count)

        return self._feeder.feed_planned(batch, due, self._planner.purse(batch, hands), handed_over)

    def _tend(self, batch: Batch, in_hand: int) -> bool:
        """Brings one batch on where it stands; answers whether that led to something new."""
        now = self._now_ms()
        match batch.status:
            case "validating":
                self._begin_work(
                    batch.id,
                    expand(self._ledger, self._storage, self._catalog, batch, self._limits, self._now_ms),
                )
            case "in_progress":
                late = now - batch.expires_ms
                if batch.open and (late < 0 or (in_hand and late < self._homecoming_ms)):
                    return False
                return self._ledger.write(_finalize, batch.id, now)
            case "finalizing":
                self._begin_work(batch.id, assemble(self._ledger, self._storage, self._home, batch, self._now_ms))
            case "cancelling":
                return self._cancel(batch, in_hand, now)
        return False

    def _cancel(self, batch: Batch, in_hand: int, now: int) -> bool:
        if batch.in_progress_ms is None:
            # Its lines weren't all read: none of them counts.
            self._works.drop(batch.id)
            moved = self._ledger.write(batches.advance, batch.id, "cancelling", "cancelled", cancelled_ms=now)
            self._begin_work(batch.id, iter(()))
            return moved
        if batch.open:
            if in_hand:
                self._cancel_jobs(batch)
            if in_hand and now - (batch.cancelling_ms or 0) < self._homecoming_ms:
                return False
            return self._ledger.write(_close, batch.id, "cancelled")
        self._begin_work(batch.id, assemble(self._ledger, self._storage, self._home, batch, self._now_ms))
        return False

    def _cancel_jobs(self, batch: Batch) -> None:
        """What waits ends at once, what runs is stopped by its worker; both come back as completions."""
        last = 0
        while numbers := self._ledger.read(lines.handed_over, batch, after=last, limit=_CANCEL_CALL):
            self._store(transitions.cancel([line_job_id(batch.id, number) for number in numbers]))
            last = numbers[-1]

    def _begin_work(self, batch_id: str, work: Iterator[None]) -> None:
        self._works.begin(batch_id, chain(work, free(self._ledger, batch_id)))

    def _step_works(self) -> bool:
        stepped = False
        for batch_id in self._works:
            if self._lease.hold():
                self._guarded(batch_id, self._step, batch_id)
                stepped = True
        return stepped

    def _step(self, batch_id: str) -> bool:
        self._works.step(batch_id)
        return True

    # What keeps one batch from hurting the others, and one process from hurting another.

    def _guarded(self, batch_id: str, act: Callable[P, bool], *args: P.args, **kwargs: P.kwargs) -> bool:
        """Runs a step of one batch. One that fails is left alone for a while."""
        try:
            return act(*args, **kwargs)
        except Unavailable:
            raise
        except FabricError as error:
            log.error("%s waits: %s", batch_id, error)
        except OSError as error:
            log.error(
                "%s waits: the files directory can't be used (%s)", batch_id, error.strerror or type(error).__name__
            )
        except Exception as error:  # noqa: BLE001 - a batch that trips a bug must not hold up the others
            # The text of an unforeseen error may quote a line: only its kind and place are told.
            place = "".join(traceback.format_tb(error.__traceback__))
            log.error("%s waits: its step raised %s\n%s", batch_id, type(error).__name__, place)
        self._works.drop(batch_id)
        self._sore[batch_id] = time.monotonic() + _SORE_S
        return False

    def _take_office(self) -> None:
        self._storage.sweep(time.time())
        for batch_id in self._ledger.read(lines.leftovers):
            for _ in free(self._ledger, batch_id):
                pass
        self._working = True

    def _stand_down(self) -> None:
        self._works.drop_all()
        self._working = False


def _finalize(connection: Connection, batch_id: str, now_ms: int) -> bool:
    """No line is open after this, and none will be."""
    held = batches.hold(connection, [batch_id])[batch_id]
    if held.status != "in_progress":
        return False
    _close_held(connection, batch_id, "expired")
    return batches.advance(connection, batch_id, "in_progress", "finalizing", finalizing_ms=now_ms)


def _close(connection: Connection, batch_id: str, state: Literal["expired", "cancelled"]) -> bool:
    batches.hold(connection, [batch_id])
    return _close_held(connection, batch_id, state)


def _close_held(connection: Connection, batch_id: str, state: Literal["expired", "cancelled"]) -> bool:
    closed = lines.close(connection, batch_id, state)
    if closed:
        batches.count(connection, batch_id, completed=0, failed=closed)
    return closed > 0
