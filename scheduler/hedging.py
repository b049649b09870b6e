"""Second tries: a job that takes longer at its place than 19 of 20 would is tried at another one, too.

Only for policies that say so (``hedge: true``), for streams until their first token, and for one job in ten at most:
when a place becomes slow as a whole its work must not be doubled. The second try is a job of its own, pinned to its
place and decided as every other one: label, permissions, budgets and limits are checked again. Which of the two counts
is settled in the store (``parts/ending.lua``, ``speak.lua``). What waits here is lost with the process: such a job
isn't tried twice.
"""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from fabric.contracts.catalog import Catalog
from fabric.contracts.decision import Decision
from fabric.contracts.errors import Unavailable
from fabric.contracts.ids import new_id
from fabric.contracts.job import JobSpec
from fabric.routing import World, late_after_s
from fabric.routing.cost import worst_cost
from fabric.store import Store, reads, transitions
from fabric.store.transitions import NewJob

log = logging.getLogger(__name__)

#: Second tries per job that may have one: as much more work as a slow hour may make.
SHARE = 0.1
#: Second tries that may come at once.
BURST = 10.0
_MOST = 10_000


@dataclass(frozen=True, slots=True, order=True)
class Hedge:
    """A second try that may be needed. ``at_s``: on the monotonic clock."""

    at_s: float
    job_id: str
    spec: JobSpec
    attempt: int
    place: str


def second(
    spec: JobSpec, decision: Decision, place: str, world: World, catalog: Catalog
) -> tuple[float, JobSpec, str] | None:
    """After how many seconds, as which job and where one that is sent to ``place`` is to be tried again; ``None``: not
    at all. Pure but for the new job's id."""
    policy = catalog.by_policy.get(decision.policy)
    if policy is None or not policy.hedge or spec.batch_id or spec.shadow_of or spec.hedge_of:
        return None
    other = next((c.deployment for c in decision.plan if c.deployment != place and c.live), None)
    deployments = catalog.by_deployment
    if other is None or spec.deployment is not None or deployments[other].waits or deployments[place].waits:
        return None
    after_s = late_after_s(spec, deployments[place], world)
    if after_s is None:
        return None
    left_usd = spec.max_cost_usd
    if left_usd is not None:
        left_usd -= worst_cost(spec, deployments[place])
        if worst_cost(spec, deployments[other]) > left_usd:
            return None  # one cap holds for both
    twin = replace(spec, id=new_id("job"), hedge_of=spec.id, deployment=other, max_cost_usd=left_usd)
    return after_s, twin, other


class Hedges:
    """``consider`` for the scheduler's thread, ``run`` for one of its own."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._waiting: list[Hedge] = []
        self._more = threading.Condition()
        self._allowed = BURST

    def consider(
        self, spec: JobSpec, decision: Decision, attempt: int, place: str, world: World, catalog: Catalog
    ) -> None:
        """Of a job that was just sent."""
        found = second(spec, decision, place, world, catalog)
        if found is None:
            return
        after_s, twin, other = found
        with self._more:
            self._allowed = min(BURST, self._allowed + SHARE)
            if len(self._waiting) < _MOST:
                heapq.heappush(self._waiting, Hedge(self._clock() + after_s, spec.id, twin, attempt, other))
                self._more.notify()

    def run(self, stop: threading.Event) -> None:
        """Until ``stop`` is set and ``wake`` was called."""
        while not stop.is_set():
            with self._more:
                due_s = self._waiting[0].at_s - self._clock() if self._waiting else None
                if due_s is None or due_s > 0:
                    self._more.wait(due_s)
                    continue
                hedge = heapq.heappop(self._waiting)
                if self._allowed < 1:
                    continue
            try:
                if self.begin(hedge):
                    with self._more:
                        self._allowed -= 1
            except Unavailable:
                continue  # whatever the store has then, this job is late by more than its second try would save

    def wake(self) -> None:
        with self._more:
            self._more.notify()

    def begin(self, hedge: Hedge) -> bool:
        """Answers whether there is a second try now. Raises ``Unavailable``."""
        first = self._store(reads.silent(hedge.job_id))
        payload = self._store(reads.payload(hedge.job_id)) if first else None
        if first is None or first.attempt != hedge.attempt or payload is None:
            return False
        spec = hedge.spec
        # As much as for the first try, out of the same budgets.
        twin = NewJob(spec, payload, placeholders=first.placeholders, charges=first.charges)
        # At once: one that was done before the first job knew of it would have been in vain.
        _, begun = self._store.both(transitions.accept([twin]), transitions.hedge(hedge.job_id, hedge.attempt, spec.id))
        if begun:
            log.info("job %s takes long; it is tried on %s, too", hedge.job_id, hedge.place)
        return begun
