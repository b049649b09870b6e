"""What decisions are made from: the state of every deployment at one moment. Values only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fabric.contracts.catalog import Catalog
from fabric.contracts.experience import Experience
from fabric.contracts.job import PRIORITIES, Priority
from fabric.contracts.worker import WorkerInfo


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
_NOTHING_LEARNED = Experience()


@dataclass(frozen=True, slots=True)
class World:
    """Every deployment's state, by name. A deployment without workers is not in it.

    ``now_ms``: milliseconds since the epoch; ``0`` where no deadline counts. ``waiting``: jobs in the
    backlog by model and class, for a job that would line up behind them; empty for one that is at its head.
    """

    deployments: Mapping[str, DeploymentState] = field(default_factory=dict)
    experience: Experience = _NOTHING_LEARNED
    now_ms: int = 0
    waiting: Mapping[tuple[str, Priority], int] = field(default_factory=dict)

    def of(self, deployment: str) -> DeploymentState:
        return self.deployments.get(deployment, _NOBODY)

    def ahead(self, model: str, priority: Priority) -> int:
        """Jobs that go before one that comes now: those of its class and of the classes above it."""
        if not self.waiting:
            return 0
        classes = PRIORITIES[: PRIORITIES.index(priority) + 1]
        return sum(self.waiting.get((model, other), 0) for other in classes)


def world_of(
    workers: Iterable[WorkerInfo],
    busy: Mapping[str, int],
    catalog: Catalog,
    *,
    experience: Experience = _NOTHING_LEARNED,
    now_ms: int = 0,
    waiting: Mapping[tuple[str, Priority], int] | None = None,
) -> World:
    """What the heartbeats add up to. ``busy``: deployment -> jobs that were sent there and haven't ended."""
    count: dict[str, int] = {}
    slots: dict[str, int] = {}
    capacity: dict[str, int] = {}
    for worker in workers:
        for name, jobs in worker.capacity.items():
            if name not in catalog.by_deployment:
                continue
            if worker.draining:
                # What it still holds counts as busy: it has room for that, and for no more.
                capacity[name] = capacity.get(name, 0) + worker.running.get(name, 0)
                continue
            count[name] = count.get(name, 0) + 1
            slots[name] = slots.get(name, 0) + worker.slots.get(name, 0)
            capacity[name] = capacity.get(name, 0) + jobs
    states = {
        name: DeploymentState(workers_there, slots[name], capacity[name], busy.get(name, 0))
        for name, workers_there in count.items()
    }
    return World(states, experience, now_ms, waiting or {})
