"""Which lanes to take from, and how many jobs: only what the tiers have room for. Pure.

Jobs of one class, tenant and model wait in one main lane. One that finds no room where it may run, while
others of its lane may run elsewhere, moves to a side lane: its name says which places it waits for, so
that it holds up nobody and nobody has to look at it before there is room.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from fabric.contracts.catalog import Catalog, Deployment
from fabric.contracts.decision import Decision
from fabric.contracts.job import DUE_MS, PRIORITIES, JobSpec
from fabric.routing import World, waits_for
from fabric.store.transitions import Lane, dead_queue, side_lane

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


def order(lanes: Iterable[Lane], now_ms: int) -> list[Lane]:
    """By class and then by due time; but in one turn of eight whoever has waited longest goes first, so
    that no class starves under another one, however much of that comes."""
    if now_ms // _TURN_MS % _TURNS == 0:
        return sorted(lanes, key=lambda lane: (lane.due_ms - DUE_MS[lane.priority], lane.name))
    return sorted(lanes, key=lambda lane: (PRIORITIES.index(lane.priority), lane.due_ms, lane.name))


def share_out(lanes: Iterable[Lane], world: World, catalog: Catalog, rules: str, now_ms: int) -> list[tuple[str, int]]:
    """How many jobs to take from which lane, in order. ``rules`` names what places were worked out under
    (``routing.places_tag``)."""
    used: Counter[str] = Counter()
    takes: list[tuple[str, int]] = []
    left = ROUND
    for lane in order(lanes, now_ms):
        if left <= 0:
            break
        places = places_of(lane, catalog, rules)
        if places is None:
            got = min(lane.length, _STRAYS, left)
        else:
            got = _room(lane, places, world, used, min(lane.length, left))
        if got:
            takes.append((lane.name, got))
            left -= got
    return takes


def drain(dead: Mapping[str, int]) -> list[tuple[str, int]]:
    """How many jobs to take from which dead-letter queue: they wait for nobody's room to be looked at."""
    return [(dead_queue(tier), min(jobs, _STRAYS)) for tier, jobs in dead.items()]


def _room(lane: Lane, places: Sequence[Deployment], world: World, used: Counter[str], wanted: int) -> int:
    got = 0
    for deployment in places:
        state = world.of(deployment.name)
        free = state.free(interactive=lane.priority == "interactive") - used[deployment.name]
        worth_it = max(1, min(_CHUNK, state.slots // _TOP_UP))
        # A breaker's probe is one job: it never waits for more.
        if lane.priority == "batch" and state.breaker is None and free < min(lane.length, worth_it):
            continue
        share = max(0, min(free, wanted - got))
        used[deployment.name] += share
        got += share
    return got


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
