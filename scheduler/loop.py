"""One round of the scheduler: look, take, decide, dispatch, send.

The order makes every crash harmless: a take is on a lease, a dispatch without its message is
reclaimed, a message without its dispatch can't be claimed.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import TypeVar

from fabric.broker import Sender
from fabric.contracts.catalog import Catalog, PrivacyRules
from fabric.contracts.decision import Decision
from fabric.contracts.errors import Unavailable
from fabric.contracts.experience import Experience
from fabric.contracts.failures import Chain
from fabric.contracts.job import JobSpec
from fabric.contracts.message import CHUNK_LIMIT, Chunk
from fabric.routing import (
    NO_PLACING,
    DeploymentState,
    Moment,
    World,
    budgets,
    decide,
    expected_output,
    places_tag,
    policy_hash,
    policy_text,
    reads_budgets,
    rulebook,
    shape,
    waits_for,
    world_of,
)
from fabric.store import Store, policies, reads, transitions
from fabric.store.budgets import balances
from fabric.store.transitions import FULL, Dispatch, Rejection, Taken
from scheduler.endings import ending
from scheduler.fair_share import FairShare
from scheduler.lanes import drain, share_out, waiting_lane

log = logging.getLogger(__name__)

#: How old what jobs have taught may be. Newer predicts a little better and costs a read of the store.
_EXPERIENCE_S = 1.0

#: Messages whose jobs are dispatched in one call. More make fewer calls, and each holds up the store
#: (and with it the answer that somebody waits for) for longer.
_MESSAGES = 4


Sent = Callable[[JobSpec, Decision, int, str, World, Catalog], None]


def _nothing(spec: JobSpec, decision: Decision, attempt: int, place: str, world: World, catalog: Catalog) -> None:
    pass


class Loop:
    """Moves jobs from the backlog to tier queues. One per scheduler process."""

    def __init__(self, store: Store, sender: Sender, catalog: Catalog, sent: Sent = _nothing) -> None:
        """``sent`` hears of every job that was sent: its spec, decision, attempt, place, and the world of then."""
        self._store = store
        self._sent = sent
        self._sender = sender
        self._experience = Experience()
        self._read_again_s = 0.0
        self._fair = FairShare()
        self._walls: dict[str, PrivacyRules] = {}
        self.adopt(catalog)

    def adopt(self, catalog: Catalog) -> None:
        """From the next round on this catalogue counts, for jobs that wait already, too."""
        self._catalog = catalog
        self._hash = policy_hash(catalog)
        self._kept = False
        self._fair.weigh(catalog.tenant_weights)
        self._reads_budgets = reads_budgets(catalog, self._hash)
        self._hedging = any(policy.hedge for policy in catalog.by_policy.values())

    def round(self) -> int:
        """Sends what there is room for; answers how many jobs moved.

        Raises:
            Unavailable: the store or the broker is away. Nothing is lost; call again later.
        """
        room = self._store(transitions.room())
        if not room.lanes and not room.dead:
            return 0
        if not self._kept:
            self._kept = self._store(policies.keep(self._hash, policy_text(self._catalog)))
        now_ms = int(time.time() * 1000)
        world = world_of(
            room.workers,
            room.busy,
            self._catalog,
            experience=self._learned(),
            now_ms=now_ms,
            breakers=room.breakers,
            filled=room.filled,
            budgets=self._used_budgets(now_ms),
        )
        tag = places_tag(self._catalog, self._hash, now_ms)
        takes = drain(room.dead) + share_out(room.lanes, world, self._catalog, tag, now_ms, self._fair)
        if not takes:
            return 0
        # First, so that jobs don't collect attempts that never left this process.
        self._sender.connect()
        return self._place(self._store(transitions.take(takes)), world, tag)

    def _used_budgets(self, now_ms: int) -> dict[str, float]:
        """Empty where no rule reads it."""
        if not self._reads_budgets:
            return {}
        found = self._store(balances(budgets.windows(self._catalog, now_ms)))
        return budgets.used(self._catalog, [b.taken if b else 0 for b in found])

    def _learned(self) -> Experience:
        if time.monotonic() >= self._read_again_s:
            self._experience = self._store(reads.experience())
            self._read_again_s = time.monotonic() + _EXPERIENCE_S
        return self._experience

    def _place(self, taken: Sequence[Taken], world: World, tag: str) -> int:
        world = self._with_walls(taken, world)
        used: Counter[str] = Counter()
        dispatches: dict[str, list[Dispatch]] = {}
        rejections: list[Rejection] = []
        waiting: list[tuple[str, str]] = []
        decided: dict[str, tuple[JobSpec, Decision]] = {}
        moved = 0
        decisions = _Decisions(self._catalog, self._hash, world)
        for job in taken:
            decision, dumped = decisions.of(job.spec, job.chain)
            if not decision.plan and not waits_for(decision):
                rejections.append(ending(job, decision, dumped, self._catalog, world.now_ms))
                continue
            interactive = job.spec.priority == "interactive"
            place = _first_with_room(decision, world, used, interactive=interactive)
            if place is None:
                lane = waiting_lane(job.spec, decision, self._catalog, tag)
                waiting.append((job.spec.id, lane))
                moved += lane != job.lane
                continue
            used[place] += 1
            tokens = job.spec.prompt_tokens + expected_output(job.spec, world.experience)
            self._fair.charge((job.spec.tenant, job.spec.model), tokens)
            tier = self._catalog.by_deployment[place].tier
            limit = world.of(place).limit(interactive=interactive)
            if self._hedging:
                decided[job.spec.id] = job.spec, decision
            dispatches.setdefault(place, []).append(Dispatch(job.spec.id, place, tier, dumped, limit))
        if rejections:
            self._store(transitions.reject(rejections))
        messages = [chunk for name, jobs in dispatches.items() for chunk in chunks(jobs, world.of(name))]
        try:
            while messages:
                some, messages = messages[:_MESSAGES], messages[_MESSAGES:]
                numbers = self._send(some)
                moved += sum(number > 0 for number in numbers.values())
                waiting += ((job_id, "") for job_id, number in numbers.items() if number == FULL)
                self._tell(some, numbers, decided, world)
        finally:
            # Left over when the broker went away in between.
            waiting += ((job.job_id, "") for chunk in messages for job in chunk)
            if waiting:
                self._store(transitions.put_aside(waiting))
        return moved + len(rejections)

    def _with_walls(self, taken: Sequence[Taken], world: World) -> World:
        """With the privacy rules that some of the jobs came in under, where those aren't the rules of now."""
        earlier = {job.spec.accepted_under for job in taken} - {None, self._hash}
        if not earlier:
            return world
        unknown = [hash_ for hash_ in earlier if hash_ is not None and hash_ not in self._walls]
        if unknown:
            for hash_, text in zip(unknown, self._store(policies.texts(unknown)), strict=True):
                if text is not None:
                    self._walls[hash_] = PrivacyRules.model_validate(text["privacy"])
        return replace(world, walls=self._walls)

    def _tell(
        self,
        messages: Sequence[Sequence[Dispatch]],
        numbers: Mapping[str, int],
        decided: Mapping[str, tuple[JobSpec, Decision]],
        world: World,
    ) -> None:
        for job in chain.from_iterable(messages):
            if numbers[job.job_id] > 0 and job.job_id in decided:
                self._sent(*decided[job.job_id], numbers[job.job_id], job.deployment, world, self._catalog)

    def _send(self, messages: Sequence[Sequence[Dispatch]]) -> dict[str, int]:
        """Job -> number of its attempt; ``FULL`` where another scheduler was quicker."""
        jobs = [job for chunk in messages for job in chunk]
        attempts = self._store(transitions.dispatch(jobs))
        numbers = {job.job_id: number for job, number in zip(jobs, attempts, strict=True)}
        sent = [
            (chunk[0].deployment, tuple((j.job_id, numbers[j.job_id]) for j in chunk if numbers[j.job_id] > 0))
            for chunk in messages
        ]
        try:
            self._sender.send(
                (self._catalog.by_deployment[name], Chunk(deployment=name, jobs=numbered))
                for name, numbered in sent
                if numbered
            )
        except Unavailable:
            # Messages that did get through are fenced by the attempt number.
            self._store(transitions.recall(job for _, numbered in sent for job in numbered))
            raise
        return numbers


class _Decisions:
    """The decisions of one round: jobs of one shape share theirs, and the bytes in which it is stored."""

    def __init__(self, catalog: Catalog, hash_: str, world: World) -> None:
        self._catalog = catalog
        self._hash = hash_
        self._world = world
        book = rulebook(catalog, hash_)
        self._rules = None if book is None else Moment(book, world)
        self._by_shape: dict[Hashable, tuple[Decision, bytes]] = {}

    def of(self, spec: JobSpec, tried: Chain) -> tuple[Decision, bytes]:
        key = shape(spec, NO_PLACING if self._rules is None else self._rules.placing(spec), tried)
        known = self._by_shape.get(key)
        if known is None:
            decision = decide(spec, self._catalog, self._hash, self._world, tried)
            known = self._by_shape[key] = decision, decision.dump()
        return known


T = TypeVar("T")


def chunks(jobs: Sequence[T], state: DeploymentState) -> Iterable[Sequence[T]]:
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
