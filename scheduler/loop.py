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
from fabric.store.transitions import FULL, Dispatch, Rejection, Taken
from scheduler.lanes import share_out, waiting_lane
from scheduler.plan import decide, policy_hash, refusal
from scheduler.world import DeploymentState, World, world_of

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
        takes = share_out(room.lanes, world, self._catalog, self._hash, int(time.time() * 1000))
        if not takes:
            return 0
        # First, so that jobs don't collect attempts that never left this process.
        self._sender.connect()
        return self._place(self._store(transitions.take(takes)), world)

    def _place(self, taken: Sequence[Taken], world: World) -> int:
        used: Counter[str] = Counter()
        dispatches: list[Dispatch] = []
        rejections: list[Rejection] = []
        waiting: list[tuple[str, str]] = []
        moved = 0
        for job in taken:
            decision = decide(job.spec, self._catalog, self._hash)
            if not decision.plan:
                error = refusal(job.spec, decision, self._catalog)
                rejections.append(Rejection(job.spec.id, JobState.FAILED, error, decision.dump()))
                continue
            interactive = job.spec.priority == "interactive"
            place = _first_with_room(decision, world, used, interactive=interactive)
            if place is None:
                lane = waiting_lane(job.spec, decision, self._catalog)
                waiting.append((job.spec.id, lane))
                moved += lane != job.lane
                continue
            used[place] += 1
            tier = self._catalog.by_deployment[place].tier
            limit = world.of(place).limit(interactive=interactive)
            dispatches.append(Dispatch(job.spec.id, place, tier, decision.dump(), limit))
        if rejections:
            self._store(transitions.reject(rejections))
        sent = self._dispatch(dispatches, waiting, world) if dispatches else 0
        if waiting:
            self._store(transitions.put_aside(waiting))
        return sent + len(rejections) + moved

    def _dispatch(self, dispatches: Sequence[Dispatch], waiting: list[tuple[str, str]], world: World) -> int:
        """Adds to ``waiting`` what another scheduler was quicker with; answers how many jobs were sent."""
        attempts = self._store(transitions.dispatch(dispatches))
        sent: dict[str, list[tuple[str, int]]] = {}
        for job, attempt in zip(dispatches, attempts, strict=True):
            if attempt == FULL:
                waiting.append((job.job_id, ""))
            elif attempt:
                sent.setdefault(job.deployment, []).append((job.job_id, attempt))
        try:
            self._sender.send(
                (self._catalog.by_deployment[name], Chunk(deployment=name, jobs=tuple(chunk)))
                for name, jobs in sent.items()
                for chunk in chunks(jobs, world.of(name))
            )
        except Unavailable:
            # Messages that did get through are fenced by the attempt number.
            self._store(transitions.recall(job for jobs in sent.values() for job in jobs))
            raise
        return sum(map(len, sent.values()))


def chunks(jobs: Sequence[tuple[str, int]], state: DeploymentState) -> Iterable[Sequence[tuple[str, int]]]:
    """Cuts jobs into messages: so small that every worker can get its share, and none much more."""
    workers = max(1, state.workers)
    share = -(-len(jobs) // workers)
    half_of_a_workers_slots = -(-state.slots // (2 * workers))
    size = max(1, min(CHUNK_LIMIT, share, half_of_a_workers_slots))
    for start in range(0, len(jobs), size):
        yield jobs[start : start + size]


def _first_with_room(decision: Decision, world: World, used: Counter[str], *, interactive: bool) -> str | None:
    for candidate in decision.plan:
        if world.of(candidate.deployment).free(interactive=interactive) > used[candidate.deployment]:
            return candidate.deployment
    return None
