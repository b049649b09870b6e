"""The decision for one job: constraints, forecast, the policy's objective, then the ordered plan.

Pure: the same values in give the same decision out, in whatever order the candidates are looked at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Sequence

from fabric.contracts.catalog import Catalog, Deployment, PrivacyRule
from fabric.contracts.decision import Decision, Elimination, Scored
from fabric.contracts.job import JobSpec
from fabric.contracts.policy import Policy
from fabric.routing.constraints import check, limits_of, too_late
from fabric.routing.cost import cost_of
from fabric.routing.forecast import backlog_ahead_s, predict
from fabric.routing.objectives import OBJECTIVES
from fabric.routing.world import World

#: A candidate and its place in the operator's order.
Candidate = tuple[int, Deployment]
_NO_WORLD = World()


def policy_hash(catalog: Catalog) -> str:
    """Names the exact catalogue, policies and privacy rules that a decision was made under."""
    return hashlib.blake2b(catalog.model_dump_json().encode(), digest_size=8).hexdigest()


def shape(spec: JobSpec) -> Hashable:
    """All that a decision depends on, of the job: two jobs of one shape are decided alike in one world."""
    return (
        *(spec.model, spec.endpoint, spec.privacy, spec.priority, spec.policy, spec.needs),
        *(spec.prompt_tokens, spec.max_output_tokens, spec.max_cost_usd, spec.deadline_ms),
    )


def decide(spec: JobSpec, catalog: Catalog, hash_: str, world: World = _NO_WORLD) -> Decision:
    """The plan for ``spec`` under the policy that it names, or under the default one."""
    name = spec.policy or catalog.default_policy
    policy = catalog.by_policy.get(name)
    model = catalog.by_model.get(spec.model)
    deployments = model.deployments if model else ()
    if policy is None:
        out = tuple(Elimination(d.name, "rule", f"there is no policy {name!r} any more") for d in deployments)
        return Decision(name, hash_, (), out)
    ahead_s = backlog_ahead_s(spec, deployments, world) if world.waiting else 0.0
    rule = catalog.privacy.of(spec.privacy)
    plan, eliminated = weigh(spec, enumerate(deployments), rule, policy, world, ahead_s)
    return Decision(name, hash_, tuple(plan), tuple(eliminated))


def weigh(
    spec: JobSpec, candidates: Iterable[Candidate], rule: PrivacyRule, policy: Policy, world: World, ahead_s: float
) -> tuple[Sequence[Scored], Sequence[Elimination]]:
    """The candidates that may, best first, and those that may not, in the operator's order.

    Places without a live worker go behind all others, whatever they score: a job waits for a dead place
    only where no other is permitted.
    """
    limits = limits_of(spec, policy, world.now_ms)
    objective = OBJECTIVES[policy.kind]
    permitted: list[tuple[bool, float, int, str, Scored]] = []
    eliminated: list[tuple[int, str, Elimination]] = []
    for preference, deployment in candidates:
        out = check(spec, deployment, rule, limits)
        if out is None:
            forecast = predict(spec, deployment, world, ahead_s)
            out = too_late(deployment, forecast, limits)
        if out is not None:
            eliminated.append((preference, deployment.name, out))
            continue
        cost = cost_of(spec, deployment, forecast.output_tokens)
        score = objective(deployment, cost, forecast, policy)
        live = forecast.finish_s is not None
        scored = Scored(
            deployment.name,
            deployment.tier,
            score,
            cost,
            forecast.finish_s,
            forecast.first_token_s,
            forecast.wait_s,
            forecast.measured,
            live,
        )
        permitted.append((not live, score, preference, deployment.name, scored))
    # Names are unique, so that the values behind them are never compared.
    permitted.sort()
    eliminated.sort()
    return [entry[-1] for entry in permitted], [entry[-1] for entry in eliminated]
