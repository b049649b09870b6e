"""What decisions are made from: the state of every deployment at one moment. Values only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fabric.contracts.breaker import OpenBreaker
from fabric.contracts.catalog import AT_HOME, Catalog, PrivacyRule, PrivacyRules
from fabric.contracts.experience import Experience
from fabric.contracts.job import PRIORITIES, JobSpec, Priority
from fabric.contracts.worker import WorkerInfo


@dataclass(frozen=True, slots=True)
class DeploymentState:
    """One deployment now. ``capacity`` and ``slots`` are summed over its live workers."""

    workers: int = 0
    slots: int = 0
    capacity: int = 0
    busy: int = 0
    breaker: OpenBreaker | None = None  #: unless it is closed
    #: Tokens of prompt and answer that every engine there really holds, where they say so.
    context: int | None = None

    def limit(self, *, interactive: bool) -> int:
        """Jobs that it may hold. Interactive jobs may overbook by one set of slots, because they go
        first at the worker's gate and would otherwise wait behind a batch's jobs."""
        return self.capacity + (self.slots if interactive else 0)

    def free(self, *, interactive: bool) -> int:
        """Jobs that may be sent now; behind a half-open breaker one, to see whether it works again."""
        room = max(0, self.limit(interactive=interactive) - self.busy)
        if self.breaker is not None:
            return 0 if self.breaker.shut else min(1, room)
        return room


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
    #: Models of which jobs wait that let interactive ones go first: so what is sent there is mostly such jobs.
    filled: frozenset[str] = frozenset()
    #: Budget -> share of its window that is spent or reserved; read only where rules read it.
    budgets: Mapping[str, float] = field(default_factory=dict)
    #: Privacy rules of earlier catalogues, by hash, for the jobs that were accepted under them.
    walls: Mapping[str, PrivacyRules] = field(default_factory=dict)

    def of(self, deployment: str) -> DeploymentState:
        return self.deployments.get(deployment, _NOBODY)

    def wall(self, spec: JobSpec, catalog: Catalog, hash_: str) -> PrivacyRule:
        """Where the job's label lets it: what the rules of now and those it came in under both permit.

        A file that is changed while a job waits may close places to it, and opens none.
        """
        rule = catalog.privacy.of(spec.privacy)
        if spec.accepted_under is None or spec.accepted_under == hash_:
            return rule
        earlier = self.walls.get(spec.accepted_under)
        return rule.narrowed(AT_HOME if earlier is None else earlier.of(spec.privacy))

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
    breakers: Mapping[str, OpenBreaker] | None = None,
    filled: Iterable[str] = (),
    budgets: Mapping[str, float] | None = None,
) -> World:
    """What the heartbeats add up to. ``busy``: deployment -> jobs that were sent there and haven't ended;
    ``breakers``: those that aren't closed; ``filled``: models of which standard or batch jobs wait."""
    count: dict[str, int] = {}
    slots: dict[str, int] = {}
    capacity: dict[str, int] = {}
    context: dict[str, int] = {}
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
            if tokens := worker.context.get(name):
                # A job may reach any of them: it must fit the smallest.
                context[name] = min(tokens, context.get(name, tokens))
    sick = breakers or {}
    states = {
        name: DeploymentState(
            workers_there, slots[name], capacity[name], busy.get(name, 0), sick.get(name), context.get(name)
        )
        for name, workers_there in count.items()
    }
    return World(states, experience, now_ms, waiting or {}, frozenset(filled), budgets or {})
