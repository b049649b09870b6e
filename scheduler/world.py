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

    def limit(self, *, interactive: bool) -> int:
        """Jobs that it may hold. Interactive jobs may overbook by one set of slots, because they go
        first at the worker's gate and would otherwise wait behind a batch's jobs."""
        return self.capacity + (self.slots if interactive else 0)

    def free(self, *, interactive: bool) -> int:
        """Jobs that may be sent now."""
        return max(0, self.limit(interactive=interactive) - self.busy)


_NOBODY = DeploymentState()


@dataclass(frozen=True, slots=True)
class World:
    """Every deployment's state, by name. A deployment without workers is not in it."""

    deployments: dict[str, DeploymentState] = field(default_factory=dict)

    def of(self, deployment: str) -> DeploymentState:
        return self.deployments.get(deployment, _NOBODY)


def world_of(room: Room, catalog: Catalog) -> World:
    workers: dict[str, int] = {}
    slots: dict[str, int] = {}
    capacity: dict[str, int] = {}
    for worker in room.workers:
        for name, jobs in worker.capacity.items():
            if name not in catalog.by_deployment:
                continue
            if worker.draining:
                # What it still holds counts as busy: it has room for that, and for no more.
                capacity[name] = capacity.get(name, 0) + worker.running.get(name, 0)
                continue
            workers[name] = workers.get(name, 0) + 1
            slots[name] = slots.get(name, 0) + worker.slots.get(name, 0)
            capacity[name] = capacity.get(name, 0) + jobs
    return World(
        {
            name: DeploymentState(count, slots[name], capacity[name], room.busy.get(name, 0))
            for name, count in workers.items()
        }
    )
