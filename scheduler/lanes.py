"""Which lanes to take from, and how many jobs: only what the tiers have room for. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from fabric.contracts.catalog import Catalog
from fabric.contracts.job import PRIORITIES
from fabric.store.transitions import Lane
from scheduler.world import World

#: Jobs taken in one round. More means fewer round trips, and a longer wait for who comes just after.
ROUND = 512
#: Jobs of an unknown model taken in one round, only to be refused.
_STRAYS = 64
#: A batch is topped up when this share of the slots is free, not job by job: its worker still has
#: about twice its slots in hand, and messages carry whole chunks.
_TOP_UP = 4
_CHUNK = 64


def order(lanes: Iterable[Lane], now_ms: int) -> list[Lane]:
    """Overdue lanes first, then by class, then by due time: nothing starves."""
    return sorted(
        lanes,
        key=lambda lane: (lane.due_ms > now_ms, PRIORITIES.index(lane.priority), lane.due_ms, lane.name),
    )


def share_out(lanes: Iterable[Lane], world: World, catalog: Catalog, now_ms: int) -> list[tuple[str, int]]:
    """How many jobs to take from which lane, in order."""
    used: dict[str, int] = {}
    takes: list[tuple[str, int]] = []
    left = ROUND
    for lane in order(lanes, now_ms):
        if left <= 0:
            break
        model = catalog.by_model.get(lane.model)
        if model is None:
            takes.append((lane.name, min(lane.length, _STRAYS)))
            continue
        wanted = min(lane.length, left)
        got = 0
        for deployment in model.deployments:
            state = world.of(deployment.name)
            free = state.free(interactive=lane.priority == "interactive") - used.get(deployment.name, 0)
            if lane.priority == "batch" and free < min(lane.length, max(1, min(_CHUNK, state.slots // _TOP_UP))):
                continue
            share = max(0, min(free, wanted - got))
            used[deployment.name] = used.get(deployment.name, 0) + share
            got += share
        if got:
            takes.append((lane.name, got))
            left -= got
    return takes
