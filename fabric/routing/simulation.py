"""Jobs that have run, decided again: under the policies of then and under others. Pure.

Both sides are decided in the same world, in which every place has a free worker: what differs comes from the
policies alone. Costs are of the tokens that the jobs really took. Deadlines are held against when jobs came.

Each job is decided for itself. Lines of a batch that was planned as a whole are too, as if there were no plan: where
they would be put together, what was free then and what else was in the plan would have to be known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from fabric.contracts.catalog import Catalog, Deployment
from fabric.contracts.experience import Experience
from fabric.contracts.job import JobSpec, Usage
from fabric.pricing import token_usd
from fabric.routing.constraints import NO_LIMITS, check
from fabric.routing.plan import decide, policy_hash
from fabric.routing.world import DeploymentState, World

#: Where a job would go that no place is left for.
NOWHERE = "nowhere"


@dataclass(frozen=True, slots=True)
class Past:
    """A job that ran: what was asked as far as it is known, where it ran, what it took and cost (US dollars).

    ``ended_ms``: when its answer was there; ``None`` where it got none. ``planned``: by its batch's plan.
    """

    spec: JobSpec
    deployment: str
    usage: Usage
    cost_usd: float
    accepted_ms: int = 0
    ended_ms: int | None = None
    planned: bool = False


@dataclass(slots=True)
class Side:
    """All jobs under one set of policies. ``finish_s``: the sum of what was predicted, over ``predicted`` jobs."""

    places: Counter[str] = field(default_factory=Counter)
    tiers: Counter[str] = field(default_factory=Counter)
    cost_usd: float = 0.0
    finish_s: float = 0.0
    predicted: int = 0
    in_time: int = 0  #: of the jobs with a deadline: done before it, or predicted to be

    @property
    def mean_finish_s(self) -> float | None:
        return self.finish_s / self.predicted if self.predicted else None


@dataclass(slots=True)
class Simulation:
    """``actual``: where they ran and what they cost. ``moved``: jobs that the two sides place differently.

    ``crossings``: jobs whose label, as it is ``before``, doesn't permit the place that they get ``after``.
    ``deadlines``: jobs that have one. ``planned``: lines that ran by their batches' plans.
    ``unknown``: jobs of models that one of the two doesn't have; they are counted nowhere else.
    """

    jobs: int = 0
    unknown: int = 0
    moved: int = 0
    crossings: int = 0
    deadlines: int = 0
    planned: int = 0
    actual: Side = field(default_factory=Side)
    before: Side = field(default_factory=Side)
    after: Side = field(default_factory=Side)


def simulate(past: Iterable[Past], before: Catalog, after: Catalog, experience: Experience) -> Simulation:
    """``before`` and ``after``: the configuration of now, and the one that is tried."""
    hashes = policy_hash(before), policy_hash(after)
    worlds = _everybody_works(before, experience), _everybody_works(after, experience)
    found = Simulation()
    for job in past:
        if job.spec.model not in before.by_model or job.spec.model not in after.by_model:
            found.unknown += 1
            continue
        found.jobs += 1
        found.planned += job.planned
        deadline_ms = job.spec.deadline_ms
        if deadline_ms is not None:
            found.deadlines += 1
            found.actual.in_time += job.ended_ms is not None and job.ended_ms <= deadline_ms
        ran_at = before.by_deployment.get(job.deployment)
        found.actual.places[job.deployment or NOWHERE] += 1
        found.actual.tiers[ran_at.tier if ran_at else NOWHERE] += 1
        found.actual.cost_usd += job.cost_usd
        old = _placed(job, before, hashes[0], worlds[0], found.before)
        new = _placed(job, after, hashes[1], worlds[1], found.after)
        found.moved += (old.name if old else None) != (new.name if new else None)
        found.crossings += new is not None and _forbidden(job.spec, new, before)
    return found


def _everybody_works(catalog: Catalog, experience: Experience) -> World:
    states = {}
    for name, deployment in catalog.by_deployment.items():
        slots = deployment.slots or 1
        states[name] = DeploymentState(workers=1, slots=slots, capacity=2 * slots)
    return World(states, experience)


def _placed(job: Past, catalog: Catalog, hash_: str, world: World, side: Side) -> Deployment | None:
    deadline_ms = job.spec.deadline_ms
    if deadline_ms is not None:
        world = replace(world, now_ms=job.accepted_ms)
    chosen = decide(job.spec, catalog, hash_, world).chosen
    if chosen is None:
        side.places[NOWHERE] += 1
        side.tiers[NOWHERE] += 1
        return None
    deployment = catalog.by_deployment[chosen.deployment]
    side.places[deployment.name] += 1
    side.tiers[deployment.tier] += 1
    used = job.usage
    side.cost_usd += token_usd(deployment.price, used.input_tokens, used.output_tokens, used.cached_input_tokens)
    if chosen.expected_finish_s is not None:
        side.finish_s += chosen.expected_finish_s
        side.predicted += 1
        if deadline_ms is not None:
            side.in_time += job.accepted_ms + chosen.expected_finish_s * 1000 <= deadline_ms
    return deployment


def _forbidden(spec: JobSpec, place: Deployment, catalog: Catalog) -> bool:
    """Whether the label keeps the job away from there, by the rules of that catalogue."""
    out = check(spec, place, catalog.privacy.of(spec.privacy), NO_LIMITS)
    return out is not None and out.reason in ("privacy", "region")
