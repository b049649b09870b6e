"""Finds out that the store has lost jobs, so that their lines are handed over again.

A store that was emptied or came back without its data is known by a mark that is gone. One that lost only
its newest writes still has the mark: there the jobs of a batch that stands still are looked up one by one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence

from fabric.contracts.ids import line_job_id
from fabric.ledger import Ledger, batches, lines
from fabric.ledger.batches import Batch
from fabric.store import Command, Store, reads

log = logging.getLogger(__name__)

_MARK = "fabric:batches:mark"
#: How long a batch with jobs in the store may stand still before they are looked up.
STILL_S = 10.0
_LOOK_UP = 500


class Loss:
    def __init__(
        self,
        store: Store,
        ledger: Ledger,
        *,
        still_s: float = STILL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._still_s = still_s
        self._clock = clock
        #: Batch -> lines without an outcome, and since when as many.
        self._still: dict[str, tuple[int, float]] = {}

    def find(self, running: Sequence[Batch], in_hand: Mapping[str, int]) -> bool:
        """Puts the batches that lost jobs back to where nothing of them was handed over; answers whether any did.

        Raises:
            Unavailable: the store or the ledger is away.
        """
        marked = self._store(_marked())
        if marked:
            lost = [batch.id for batch in self._standing_still(running, in_hand) if self._lost(batch)]
            reason = "the job store has lost jobs"
        else:
            lost = [batch.id for batch in running if batch.fed_until or batch.id in in_hand]
            reason = "the job store is a new one or was emptied"
        if lost:
            log.warning("%s: the open lines of %d batches are handed over again", reason, len(lost))
            self._ledger.write(batches.unfed, lost)
        if not marked:
            # Last: a crash before this only hands over once more.
            self._store(_mark())
        return bool(lost)

    def _standing_still(self, running: Sequence[Batch], in_hand: Mapping[str, int]) -> list[Batch]:
        now = self._clock()
        before, self._still = self._still, {}
        still = []
        for batch in running:
            if not in_hand.get(batch.id):
                continue
            number, since = before.get(batch.id, (batch.open, now))
            if number != batch.open:
                since = now
            elif now - since >= self._still_s:
                still.append(batch)
                since = now
            self._still[batch.id] = (batch.open, since)
        return still

    def _lost(self, batch: Batch) -> bool:
        last = 0
        while numbers := self._ledger.read(lines.handed_over, batch, after=last, limit=_LOOK_UP):
            jobs = [line_job_id(batch.id, number) for number in numbers]
            if self._store(reads.exist(jobs)) < len(jobs):
                return True
            last = numbers[-1]
        return False


def _marked() -> Command[bool]:
    return Command(("EXISTS", _MARK), bool)


def _mark() -> Command[bool]:
    return Command(("SET", _MARK, "1"), bool)
