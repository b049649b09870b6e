"""One round of the scheduler: look, take, decide, dispatch, send.

The order makes every crash harmless: a take is on a lease, a dispatch without its message is
reclaimed, a message without its dispatch can't be claimed.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Sequence

from fabric.broker import Sender
from fabric.contracts.catalog import Catalog
from fabric.contracts.decision import Decision
from fabric.contracts.errors import Unavailable
from fabric.contracts.job import JobState
from fabric.contracts.message import CHUNK_LIMIT, Chunk
from fabric.store import Store, transitions
from fabric.store.transitions import Dispatch, Rejection, Taken
from scheduler.lanes import share_out
from scheduler.plan import decide, policy_hash, refusal
from scheduler.world import World, world_of

log = logging.getLogger(__name__)


class Loop:
    """Moves jobs from the backlog to tier queues. One per scheduler process."""

    def __init__(self, store: Store, sender: Sender, catalog: Catalog) -> None:
        self._store = store
        self._sender = sender
        self._catalog = catalog
        self._hash = policy_hash(catalog)

    def round(self) -> int:
        """Sends what there is room for; answers how many jobs moved.

        Raises:
            Unavailable: the store or the broker is away. Nothing is lost; call again later.
        """
        room = self._store(transitions.room())
        if not room.lanes:
            return 0
        world = world_of(room, self._catalog)
        takes = share_out(room.lanes, world, self._catalog, int(time.time() * 1000))
        if not takes:
            return 0
        return self._place(self._store(transitions.take(takes)), world)

    def _place(self, taken: Sequence[Taken], world: World) -> int:
        used: Counter[str] = Counter()
        dispatches: list[Dispatch] = []
        rejections: list[Rejection] = []
        waiting: list[str] = []
        for job in taken:
            decision = decide(job.spec, self._catalog, self._hash)
            if not decision.plan:
                error = refusal(job.spec, decision, self._catalog)
                rejections.append(Rejection(job.spec.id, JobState.FAILED, error, decision.dump()))
                continue
            place = _first_with_room(decision, world, used, interactive=job.spec.priority == "interactive")
            if place is None:
                waiting.append(job.spec.id)
                continue
            used[place] += 1
            tier = self._catalog.by_deployment[place].tier
            dispatches.append(Dispatch(job.spec.id, place, tier, decision.dump()))
        if rejections:
            self._store(transitions.reject(rejections))
        if dispatches:
            self._dispatch(dispatches, world)
        if waiting:
            self._store(transitions.put_back(waiting))
        return len(dispatches) + len(rejections)

    def _dispatch(self, dispatches: Sequence[Dispatch], world: World) -> None:
        attempts = self._store(transitions.dispatch(dispatches))
        sent: dict[str, list[tuple[str, int]]] = {}
        for job, attempt in zip(dispatches, attempts, strict=True):
            if attempt:
                sent.setdefault(job.deployment, []).append((job.job_id, attempt))
        try:
            self._sender.send(
                (self._catalog.by_deployment[name], Chunk(deployment=name, jobs=tuple(chunk)))
                for name, jobs in sent.items()
                for chunk in chunks(jobs, world.of(name).workers)
            )
        except Unavailable:
            # Messages that did get through are fenced by the attempt number.
            self._store(transitions.recall(job for jobs in sent.values() for job in jobs))
            raise


def chunks(jobs: Sequence[tuple[str, int]], workers: int) -> Iterable[Sequence[tuple[str, int]]]:
    """Cuts jobs into messages, so that every worker can get its share."""
    size = min(CHUNK_LIMIT, -(-len(jobs) // max(1, workers)))
    for start in range(0, len(jobs), size):
        yield jobs[start : start + size]


def _first_with_room(decision: Decision, world: World, used: Counter[str], *, interactive: bool) -> str | None:
    for candidate in decision.plan:
        if world.of(candidate.deployment).free(interactive=interactive) > used[candidate.deployment]:
            return candidate.deployment
    return None
