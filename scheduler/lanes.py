"""Which lanes to take from, and how many jobs: only what the tiers have room for. Pure.

Jobs of one class, tenant and model wait in one main lane. One that finds no room where it may run, while
others of its lane may run elsewhere, moves to a side lane: its name says which places it waits for, so
that it holds up nobody and nobody has to look at it before there is room.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from fabric.contracts.catalog import Catalog, Deployment
from fabric.contracts.decision import Decision
from fabric.contracts.job import DUE_MS, PRIORITIES, JobSpec, Priority
from fabric.routing import World, waits_for
from fabric.store.transitions import Lane, dead_queue, side_lane
from scheduler.fair_share import FairShare, Kind

#: Jobs taken in one round. More means fewer round trips, and a longer wait for who comes just after.
ROUND = 512
#: Jobs taken in one round from a lane of which it isn't known where they may run: each is looked at
#: once and then ends, runs, or waits in the lane where it belongs.
_STRAYS = 64
#: How long a turn is, and how many there are until the longest wait counts again. Fewer are fairer to
#: batches and slower for people, while there is more work than room.
_TURN_MS = 1_000
_TURNS = 8
#: A batch is topped up when this share of the slots is free, not job by job: its worker still has
#: about twice its slots in hand, and messages carry whole chunks.
_TOP_UP = 4
_CHUNK = 64


def bands(lanes: Iterable[Lane], now_ms: int) -> list[list[Lane]]:
    """Lanes that are served one after the other: a class each, the earliest due time first. In one turn of eight it
    is all of them, by how long they have waited, so that no class starves under another one, however much of that
    comes."""
    if now_ms // _TURN_MS % _TURNS == 0:
        return [sorted(lanes, key=lambda lane: (lane.due_ms - DUE_MS[lane.priority], lane.name))]
    by_class: dict[Priority, list[Lane]] = {priority: [] for priority in PRIORITIES}
    for lane in sorted(lanes, key=lambda lane: (lane.due_ms, lane.name)):
        by_class[lane.priority].append(lane)
    return [band for band in by_class.values() if band]


def share_out(
    lanes: Sequence[Lane], world: World, catalog: Catalog, rules: str, now_ms: int, fair: FairShare
) -> list[tuple[str, int]]:
    """How many jobs to take from which lane, in order: between tenants by their shares, and among the lanes of those
    that have credit by due time. ``rules`` names what places were worked out under (``routing.places_tag``)."""
    fair.settle(_kind(lane) for lane in lanes)
    used: Counter[str] = Counter()
    takes: Counter[str] = Counter()
    left = ROUND
    for band in bands(lanes, now_ms):
        known: dict[str, list[_Open]] = {}
        for lane in band:
            places = places_of(lane, catalog, rules)
            if places is not None:
                known.setdefault(lane.model, []).append(_open(lane, places, world, used))
            elif left and (strays := min(lane.length, _STRAYS, left)):
                takes[lane.name] += strays
                left -= strays
        for of_model in known.values():
            left -= _deal(of_model, used, left, takes, fair)
    return list(takes.items())


def drain(dead: Mapping[str, int]) -> list[tuple[str, int]]:
    """How many jobs to take from which dead-letter queue: they wait for nobody's room to be looked at."""
    return [(dead_queue(tier), min(jobs, _STRAYS)) for tier, jobs in dead.items()]


@dataclass(frozen=True, slots=True)
class _Open:
    """A lane and the places that would take its jobs in this round, with how many each."""

    lane: Lane
    free: dict[str, int]

    def room(self, used: Mapping[str, int]) -> int:
        return sum(max(0, free - used[name]) for name, free in self.free.items())


def _open(lane: Lane, places: Iterable[Deployment], world: World, used: Mapping[str, int]) -> _Open:
    free = {}
    for deployment in places:
        state = world.of(deployment.name)
        most = state.free(interactive=lane.priority == "interactive")
        # A breaker's probe is one job: it never waits for more.
        if lane.priority == "batch" and state.breaker is None:
            worth_it = max(1, min(_CHUNK, state.slots // _TOP_UP))
            if most - used[deployment.name] < min(lane.length, worth_it):
                continue
        free[deployment.name] = most
    return _Open(lane, free)


def _deal(lanes: Sequence[_Open], used: Counter[str], most: int, takes: Counter[str], fair: FairShare) -> int:
    """Shares out the room of one model between the tenants of ``lanes``, which are in order. Adds to ``used`` and
    ``takes``; answers how many jobs that is."""
    spent: dict[Kind, float] = {}
    dealt = 0
    while dealt < most:
        could = [it for it in lanes if takes[it.lane.name] < it.lane.length and it.room(used)]
        if not could:
            break
        kinds = {_kind(it.lane) for it in could}
        with_credit = (it for it in could if fair.credit(_kind(it.lane)) > spent.get(_kind(it.lane), 0.0))
        first = next(with_credit, None)
        if first is None:
            fair.next_turn(kinds, spent)
            continue
        lane, kind = first.lane, _kind(first.lane)
        count = min(first.room(used), lane.length - takes[lane.name], most - dealt)
        if len(kinds) > 1:
            count = min(count, ceil((fair.credit(kind) - spent.get(kind, 0.0)) / fair.job_tokens(kind)))
        spent[kind] = spent.get(kind, 0.0) + count * fair.job_tokens(kind)
        if len(kinds) == 1:
            fair.next_turn(kinds, spent)  # of what nobody else could have it owes nothing
        takes[lane.name] += count
        dealt += count
        for name, free in first.free.items():
            here = max(0, min(count, free - used[name]))
            used[name] += here
            count -= here
    return dealt


def _kind(lane: Lane) -> Kind:
    return lane.tenant, lane.model


def places_of(lane: Lane, catalog: Catalog, rules: str) -> Sequence[Deployment] | None:
    """Where the lane's jobs may run at most, or ``None`` if that has to be found out job by job."""
    model = catalog.by_model.get(lane.model)
    if model is None:
        return None
    if not lane.places:
        return model.taking(lane.priority)
    known, _, names = lane.places.partition(":")
    if known != rules:
        return None  # decided under another catalogue, or another hour
    wanted = frozenset(names.split(","))
    return [deployment for deployment in model.deployments if deployment.name in wanted]


def waiting_lane(spec: JobSpec, decision: Decision, catalog: Catalog, rules: str) -> str:
    """The lane for a job that may run, but not now. ``rules``: as in ``share_out``."""
    names = {candidate.deployment for candidate in decision.plan}.union(waits_for(decision))
    model = catalog.by_model[spec.model]
    if len(names) == len(model.taking(spec.priority)):
        return spec.lane
    return side_lane(spec, f"{rules}:{','.join(sorted(names))}")
