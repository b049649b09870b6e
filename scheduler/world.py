"""What decisions are made from: the state of every deployment at one moment. Values only."""

from __future__ import annotations

from dataclasses import dataclass, field

from fabric.contracts.catalog import Catalog
from fabric.store.transitions import Room


@dataclass(frozen=True, slots=True)
class DeploymentState:
    """One deployment now. ``capacity`` and ``slots`` are summed over its live workers."""

    workers: int = 0
    slots: int = 0
    capacity: int = 0
    busy: int = 0

    def free(self, *, interactive: bool) -> int:
        """Jobs that may be sent now. Interactive jobs may overbook by one set of slots, because
        they go first at the worker's gate and would otherwise wait behind a batch's jobs."""
        return max(0, self.capacity + (self.slots if interactive else 0) - self.busy)


_NOBODY = DeploymentState()


@dataclass(frozen=True, slots=True)
class World:
    """Every deployment's state, by name. A deployment without workers is not in it."""

    deployments: dict[str, DeploymentState] = field(default_factory=dict)

    def of(self, deployment: str) -> DeploymentState:
        return self.deployments.get(deployment, _NOBODY)


def world_of(room: Room, catalog: Catalog) -> World:
    sums: dict[str, list[int]] = {}
    for worker in room.workers:
        if worker.draining:
            continue
        for deployment, capacity in worker.capacity.items():
            if deployment in catalog.by_deployment:
                state = sums.setdefault(deployment, [0, 0, 0])
                state[0] += 1
                state[1] += worker.slots.get(deployment, 0)
                state[2] += capacity
    return World(
        {
            name: DeploymentState(workers, slots, capacity, room.busy.get(name, 0))
            for name, (workers, slots, capacity) in sums.items()
        }
    )
