"""The decision for one job: constraints, forecast, the policy's objective, then the ordered plan.

Pure: the same values in give the same decision out, in whatever order the candidates are looked at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Sequence

import orjson

from fabric.contracts.catalog import Catalog, Deployment, PrivacyRule
from fabric.contracts.decision import Decision, Elimination, Scored
from fabric.contracts.failures import NEW, Chain
from fabric.contracts.job import JobSpec
from fabric.contracts.policy import Policy
from fabric.routing.constraints import check, cramped, limits_of, never_fast, required, too_late
from fabric.routing.cost import expected_cost
from fabric.routing.forecast import backlog_ahead_s, predict
from fabric.routing.objectives import OBJECTIVES
from fabric.routing.rules import NO_PLACING, Moment, Placing, rulebook
from fabric.routing.tried import exhausted, left_of, sick, unlike
from fabric.routing.world import World

#: A candidate and its place in the operator's order.
Candidate = tuple[int, Deployment]
_NO_WORLD = World()


def policy_hash(catalog: Catalog) -> str:
    """Names the exact catalogue, policies and privacy rules that a decision was made under."""
    return hashlib.blake2b(catalog.model_dump_json().encode(), digest_size=8).hexdigest()


def policy_text(catalog: Catalog) -> bytes:
    """What decisions are made from, as JSON, for people to read later: no addresses, no names of keys."""
    places = {"options", "base_url", "api_key_env", "api_key_file"}
    shown = catalog.model_dump(mode="json", exclude={"models": {"__all__": {"deployments": {"__all__": places}}}})
    return orjson.dumps({"policy_hash": policy_hash(catalog), **shown})


def shape(spec: JobSpec, placing: Placing = NO_PLACING, chain: Chain = NEW) -> Hashable:
    """All that a decision depends on, of the job: two jobs of one shape are decided alike in one world.

    ``placing``: what the rules say of the job there; ``chain``: what its earlier attempts leave it.
    """
    return (
        placing,
        chain,
        *(spec.model, spec.endpoint, spec.privacy, spec.priority, spec.policy, spec.needs, spec.stream),
        *(spec.prompt_tokens, spec.max_output_tokens, spec.answers, spec.max_cost_usd, spec.deadline_ms),
        *(spec.deployment, spec.allowed_tiers, spec.allowed_regions, spec.accepted_under),
        *(spec.redacted, spec.raised_from, spec.entities, spec.planned),
    )


def decide(spec: JobSpec, catalog: Catalog, hash_: str, world: World = _NO_WORLD, chain: Chain = NEW) -> Decision:
    """The plan for ``spec`` under the rules, and the policy that they or it name, or the default one.

    ``chain``: what its earlier attempts leave of its choices; all else is checked as if it were new.
    """
    book = rulebook(catalog, hash_)
    placing = NO_PLACING if book is None else Moment(book, world).placing(spec)
    name = placing.policy or spec.policy or catalog.default_policy
    policy = catalog.by_policy.get(name)
    model = catalog.by_model.get(spec.model)
    deployments = model.deployments if model else ()
    if policy is None:
        out = tuple(Elimination(d.name, "rule", f"there is no policy {name!r} any more") for d in deployments)
        return Decision(name, hash_, (), out, placing.rule)
    ahead_s = backlog_ahead_s(spec, deployments, world) if world.waiting else 0.0
    rule = world.wall(spec, catalog, hash_)
    candidates: Iterable[Candidate] = enumerate(deployments)
    used_up: list[Elimination] = []
    if chain is not NEW:
        found = [(n, exhausted(d, chain) or unlike(d, chain, policy, catalog)) for n, d in enumerate(deployments)]
        used_up = [out for _, out in found if out is not None]
        candidates = [(n, deployments[n]) for n, out in found if out is None]
    plan, out_now = weigh(spec, candidates, rule, policy, world, ahead_s, placing, chain)
    if spec.planned is not None:
        plan, out_now = as_planned(spec.planned, plan, out_now)
    eliminated = [*used_up, *out_now]
    return Decision(name, hash_, tuple(plan), tuple(eliminated), placing.rule)


def as_planned(
    place: str, plan: Sequence[Scored], eliminated: Sequence[Elimination]
) -> tuple[Sequence[Scored], Sequence[Elimination]]:
    """A batch's line waits for the place that the batch's plan has for it, as long as somebody works there and nothing
    keeps it from there. Otherwise it is any job."""
    if not any(candidate.deployment == place and candidate.live for candidate in plan):
        return plan, eliminated
    detail = f"the batch's plan has it run on {place}"
    others = [Elimination(c.deployment, "rule", detail) for c in plan if c.deployment != place]
    return [c for c in plan if c.deployment == place], [*eliminated, *others]


def weigh(
    spec: JobSpec,
    candidates: Iterable[Candidate],
    rule: PrivacyRule,
    policy: Policy,
    world: World,
    ahead_s: float,
    placing: Placing = NO_PLACING,
    chain: Chain = NEW,
) -> tuple[Sequence[Scored], Sequence[Elimination]]:
    """The candidates that may, best first, and those that may not, in the operator's order.

    Places without a live worker go behind all others, whatever they score: a job waits for a dead place
    only where no other is permitted. What a rule prefers goes before what scores better.
    """
    limits = left_of(limits_of(spec, policy, world.now_ms), chain)
    objective = OBJECTIVES[policy.kind]
    permitted: list[tuple[bool, int, float, int, str, Scored]] = []
    eliminated: list[tuple[int, str, Elimination]] = []
    for preference, deployment in candidates:
        out = check(spec, deployment, rule, limits) or (required(deployment, placing) if placing.require else None)
        if out is None:
            forecast = predict(spec, deployment, world, ahead_s)
            out = never_fast(deployment, policy) or too_late(deployment, forecast, limits)
        state = world.of(deployment.name)
        if out is None and state.context is not None:
            out = cramped(spec, deployment, state.context)
        if out is None and state.breaker is not None:
            out = sick(deployment, state.breaker)
        if out is not None:
            eliminated.append((preference, deployment.name, out))
            continue
        cost = expected_cost(spec, deployment, forecast.output_tokens, forecast.service_s, state)
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
        rank = placing.rank(deployment.tier, deployment.region, deployment.name) if placing.rule else 0
        permitted.append((not live, rank, score, preference, deployment.name, scored))
    # Names are unique, so that the values behind them are never compared.
    permitted.sort()
    eliminated.sort()
    return [entry[-1] for entry in permitted], [entry[-1] for entry in eliminated]
