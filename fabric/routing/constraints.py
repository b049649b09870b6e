"""Hard constraints: each one looks at one candidate and says why it is out, or nothing.

Pure functions. A constraint never weighs anything; a candidate that fails one is never used,
whatever it would score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from fabric.contracts.catalog import Deployment, PrivacyRule
from fabric.contracts.decision import Elimination, Reason
from fabric.contracts.job import JobSpec
from fabric.contracts.job_seals import ReadingZones
from fabric.contracts.policy import Policy
from fabric.contracts.terms import TIERS
from fabric.routing.cost import worst_cost
from fabric.routing.forecast import Forecast
from fabric.routing.rules import Placing

#: Weaker to stronger: a deployment may offer more than the label asks for.
_DATA_POLICY_RANK = {"none": 0, "no_training": 1, "zero_retention": 2}


class Limits(NamedTuple):
    """What one answer may take, wherever it comes from. ``None``: no limit."""

    cost_usd: float | None
    finish_s: float | None  #: from now


NO_LIMITS = Limits(None, None)


def limits_of(spec: JobSpec, policy: Policy, now_ms: int) -> Limits:
    """The stricter of the request's and the policy's. Without a clock (``now_ms`` 0) no deadline counts."""
    left_s = (spec.deadline_ms - now_ms) / 1000 if spec.deadline_ms is not None and now_ms else None
    return Limits(_stricter(spec.max_cost_usd, policy.max_cost_usd), _stricter(left_s, policy.max_latency_s))


def _stricter(one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)


def _label(spec: JobSpec) -> str:
    if spec.raised_from is None:
        return f"label {spec.privacy}"
    return f"label {spec.privacy} (raised from {spec.raised_from}: {', '.join(spec.entities)} found)"


Constraint = Callable[[JobSpec, Deployment, PrivacyRule, Limits], tuple[Reason, str] | None]


def _pin(spec: JobSpec, deployment: Deployment, rule: PrivacyRule, limits: Limits) -> tuple[Reason, str] | None:
    if spec.deployment is None or spec.deployment == deployment.name:
        return None
    return "rule", f"the request asks for {spec.deployment} and no other"


def _permitted(spec: JobSpec, deployment: Deployment, rule: PrivacyRule, limits: Limits) -> tuple[Reason, str] | None:
    tiers, regions = spec.allowed_tiers, spec.allowed_regions
    if tiers and deployment.tier not in tiers:
        return "permission", f"the key permits {', '.join(tiers)}, not {deployment.tier}"
    # The operator's own machines are where the operator is, unless they say otherwise.
    if regions and deployment.region not in regions and (deployment.tier == "cloud" or deployment.region != "local"):
        return "permission", f"the key permits {', '.join(regions)}, not {deployment.region}"
    return None


def _tier(spec: JobSpec, deployment: Deployment, rule: PrivacyRule, limits: Limits) -> tuple[Reason, str] | None:
    if deployment.tier in rule.tiers:
        return None
    return "privacy", f"{_label(spec)} permits {', '.join(rule.tiers) or 'no tier'}, not {deployment.tier}"


def _data_policy(spec: JobSpec, deployment: Deployment, rule: PrivacyRule, limits: Limits) -> tuple[Reason, str] | None:
    if deployment.tier != "cloud":
        return None  # nothing leaves the operator's machines
    if _DATA_POLICY_RANK[deployment.data_policy] >= _DATA_POLICY_RANK[rule.data_policy]:
        return None
    offered = deployment.data_policy
    return "privacy", f"{_label(spec)} asks for {rule.data_policy}, the provider's policy is {offered}"


def _redaction(spec: JobSpec, deployment: Deployment, rule: PrivacyRule, limits: Limits) -> tuple[Reason, str] | None:
    # Fail closed: somebody must have vouched for the text that leaves.
    if deployment.tier != "cloud" or not rule.redact or spec.redacted:
        return None
    return "privacy", f"{_label(spec)} asks for redaction before the cloud, and this job couldn't be redacted"


def _region(spec: JobSpec, deployment: Deployment, rule: PrivacyRule, limits: Limits) -> tuple[Reason, str] | None:
    if rule.regions is None or deployment.tier != "cloud" or deployment.region in rule.regions:
        return None
    return "region", f"{_label(spec)} permits {', '.join(rule.regions)}, not {deployment.region}"


def _capability(spec: JobSpec, deployment: Deployment, rule: PrivacyRule, limits: Limits) -> tuple[Reason, str] | None:
    for need in spec.needs:
        if need not in deployment.capabilities:
            missing = [need for need in spec.needs if need not in deployment.capabilities]
            return "capability", f"has no {', '.join(missing)}"
    return None


def _waiting(spec: JobSpec, deployment: Deployment, rule: PrivacyRule, limits: Limits) -> tuple[Reason, str] | None:
    if not deployment.waits:
        return None
    if spec.priority != "batch":
        return "capability", f"a provider's batch API takes jobs of priority batch, not {spec.priority}"
    return ("capability", "a provider's batch API streams nothing") if spec.stream else None


def _context(spec: JobSpec, deployment: Deployment, rule: PrivacyRule, limits: Limits) -> tuple[Reason, str] | None:
    wanted = spec.prompt_tokens + (spec.max_output_tokens or 0)
    if wanted <= deployment.context_window:
        return None
    return "context", f"about {wanted} tokens wanted, the window holds {deployment.context_window}"


def _cost_cap(spec: JobSpec, deployment: Deployment, rule: PrivacyRule, limits: Limits) -> tuple[Reason, str] | None:
    if limits.cost_usd is None:
        return None
    cost = worst_cost(spec, deployment)
    if cost <= limits.cost_usd:
        return None
    return "budget", f"could cost ${cost:.6f}, the cap is ${limits.cost_usd:.6f}"


CONSTRAINTS: tuple[Constraint, ...] = (
    *(_pin, _permitted, _tier, _data_policy, _redaction, _region),
    *(_capability, _waiting, _context, _cost_cap),
)


#: Those that keep a job's text where its label and its key let it be.
LABEL: tuple[Constraint, ...] = (_tier, _data_policy, _redaction, _region)
_WALL: tuple[Constraint, ...] = (_permitted, *LABEL)


def walled_off(spec: JobSpec, deployment: Deployment, rule: PrivacyRule) -> Elimination | None:
    """Why this job's text mustn't reach this deployment, whatever else speaks for it."""
    return _failed(_WALL, spec, deployment, rule)


def reading_zones(spec: JobSpec, deployments: Iterable[Deployment], rule: PrivacyRule) -> ReadingZones:
    """The trust zones whose workers may read the job's text."""
    local: set[str] = set()
    cloud: set[str] = set()
    for deployment in deployments:
        if _failed(_WALL, spec, deployment, rule) is None:
            (cloud if deployment.tier == "cloud" else local).add(deployment.zone)
    return ReadingZones(frozenset(local), frozenset(cloud))


def label_blocks(spec: JobSpec, deployments: Iterable[Deployment], rule: PrivacyRule) -> bool:
    """Whether the label keeps the job away from any of them."""
    if rule.data_policy == "none" and not rule.redact and rule.regions is None and len(rule.tiers) == len(TIERS):
        return False
    return any(_failed(LABEL, spec, deployment, rule) for deployment in deployments)


def _failed(
    constraints: Iterable[Constraint], spec: JobSpec, deployment: Deployment, rule: PrivacyRule
) -> Elimination | None:
    for constraint in constraints:
        failed = constraint(spec, deployment, rule, NO_LIMITS)
        if failed:
            return Elimination(deployment.name, *failed)
    return None


def check(spec: JobSpec, deployment: Deployment, rule: PrivacyRule, limits: Limits) -> Elimination | None:
    """The first constraint that the candidate fails, of those that need no forecast."""
    for constraint in CONSTRAINTS:
        failed = constraint(spec, deployment, rule, limits)
        if failed:
            return Elimination(deployment.name, *failed)
    return None


def cramped(spec: JobSpec, deployment: Deployment, context: int) -> Elimination | None:
    """A candidate whose engine was loaded with less context (in tokens) than the job may take."""
    wanted = spec.prompt_tokens + (spec.max_output_tokens or 0)
    if wanted <= context:
        return None
    return Elimination(deployment.name, "context", f"about {wanted} tokens wanted, the engine there holds {context}")


def required(deployment: Deployment, placing: Placing) -> Elimination | None:
    """A candidate that the rule which counts for the job doesn't name."""
    where = placing.require
    if where is None or where.holds(deployment.tier, deployment.region, deployment.name):
        return None
    return Elimination(deployment.name, "rule", f"{placing.rule!r} requires {where}")


def too_late(deployment: Deployment, forecast: Forecast, limits: Limits) -> Elimination | None:
    """A candidate that would miss the deadline, as far as measurements say: a guess eliminates nobody, but that a
    provider's batch takes long is no guess. There, time must be left for another place, should it take longer yet."""
    if limits.finish_s is None:
        return None
    if deployment.waits:
        return _too_long(deployment, forecast, limits.finish_s)
    if forecast.finish_s is None or not forecast.measured or forecast.finish_s <= limits.finish_s:
        return None
    detail = f"would be done in about {forecast.finish_s:.1f} s, {max(0.0, limits.finish_s):.1f} s are left"
    return Elimination(deployment.name, "deadline", detail)


def _too_long(deployment: Deployment, forecast: Forecast, left_s: float) -> Elimination | None:
    reserve_s = deployment.batch_api.reserve_s if deployment.batch_api else 0.0
    needed_s = (forecast.service_s if forecast.finish_s is None else forecast.finish_s) + reserve_s
    if needed_s <= left_s:
        return None
    detail = f"a provider's batch takes about {needed_s:.0f} s with its reserve, {max(0.0, left_s):.1f} s are left"
    return Elimination(deployment.name, "deadline", detail)


def never_fast(deployment: Deployment, policy: Policy) -> Elimination | None:
    """Who wants the fastest place waits for one rather than for a provider's batch."""
    if policy.kind != "fastest" or not deployment.waits:
        return None
    return Elimination(deployment.name, "rule", "the policy wants the fastest place, and a provider's batch waits")
