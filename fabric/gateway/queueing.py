"""Where a waiting job stands, and when it will be done. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fabric.contracts.catalog import Catalog, Deployment, Model, Tier
from fabric.contracts.job import PRIORITIES
from fabric.store.transitions import Lane, Room

#: What a job takes where none has ended yet.
_UNKNOWN_PACE_S = 1.0


@dataclass(frozen=True, slots=True)
class Place:
    """``position``: jobs that go first. ``eta_s``: seconds until the job has ended; ``None``: unknown."""

    position: int
    eta_s: float | None


def place(lane: str, rank: int, room: Room, model: Model | None, pace_s: Mapping[str, float]) -> Place | None:
    """``rank``: jobs before it in its own lane. ``pace_s``: deployment -> mean seconds that a job is held.
    ``None`` when the lane isn't there any more: the job has just left it."""
    own = next((other for other in room.lanes if other.name == lane), None)
    if own is None:
        return None
    position = rank + sum(_before(other, own, rank) for other in room.lanes)
    rate = _jobs_per_s(model.deployments, room, pace_s) if model else 0.0
    return Place(position, round((position + 1) / rate, 3) if rate else None)


def _before(other: Lane, own: Lane, rank: int) -> int:
    """Jobs of another lane that go first. Only lanes of the same model wait for the same places.

    Classes go in their order; lanes of one class go by due time, which is the order of arrival: the lane
    whose head is older is one job ahead, then they take turns.
    """
    if other.name == own.name or other.model != own.model:
        return 0
    if other.priority != own.priority:
        return other.length if PRIORITIES.index(other.priority) < PRIORITIES.index(own.priority) else 0
    ahead = (other.due_ms, other.name) < (own.due_ms, own.name)
    return min(other.length, rank + ahead)


def backlog_s(tier: Tier, catalog: Catalog, room: Room, pace_s: Mapping[str, float]) -> float:
    """Seconds that the tier would need for all jobs that may run there, at its pace and with the workers
    that it has. One that has none is reckoned with one slot, so that what waits for it shows."""
    seconds = 0.0
    for model in catalog.models:
        waiting = sum(lane.length for lane in room.lanes if lane.model == model.name)
        here = [d for d in model.deployments if d.tier == tier]
        if waiting and here:
            one_slot = 1 / max((pace_s[d.name] for d in here if pace_s.get(d.name)), default=_UNKNOWN_PACE_S)
            seconds += waiting / (_jobs_per_s(here, room, pace_s) or one_slot)
    return seconds


def _jobs_per_s(deployments: Iterable[Deployment], room: Room, pace_s: Mapping[str, float]) -> float:
    """Little's law, L = λW: what holds L jobs for W seconds each lets λ = L/W of them through a second.
    J. D. C. Little, "A Proof for the Queuing Formula: L = λW", Operations Research 9(3), 1961."""
    rate = 0.0
    for deployment in deployments:
        held = sum(w.capacity.get(deployment.name, 0) for w in room.workers if not w.draining)
        pace = pace_s.get(deployment.name, 0.0)
        if held and pace > 0:
            rate += held / pace
    return rate
