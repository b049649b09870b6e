"""Hard constraints: each one looks at one candidate and says why it is out, or nothing.

Pure functions. A constraint never weighs anything; a candidate that fails one is never used,
whatever it would score.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from fabric.contracts.catalog import Deployment, PrivacyRule
from fabric.contracts.decision import Elimination, Reason
from fabric.contracts.job import JobSpec
from fabric.contracts.policy import Policy
from fabric.routing.cost import worst_cost
from fabric.routing.forecast import Forecast

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


Constraint = Callable[[JobSpec, Deployment, PrivacyRule, Limits], tuple[Reason, str] | None]


def _tier(spec: JobSpec, deployment: Deployment, rule: PrivacyRule, limits: Limits) -> tuple[Reason, str] | None:
    if deployment.tier in rule.tiers:
        return None
    return "privacy", f"label {spec.privacy} permits {', '.join(rule.tiers) or 'no tier'}, not {deployment.tier}"


def _data_policy(spec: JobSpec, deployment: Deployment, rule: PrivacyRule, limits: Limits) -> tuple[Reason, str] | None:
    if deployment.tier != "cloud":
        return None  # nothing leaves the operator's machines
    if _DATA_POLICY_RANK[deployment.data_policy] >= _DATA_POLICY_RANK[rule.data_policy]:
        return None
    offered = deployment.data_policy
    return "privacy", f"label {spec.privacy} asks for {rule.data_policy}, the provider's policy is {offered}"


def _redaction(spec: JobSpec, deployment: Deployment, rule: PrivacyRule, limits: Limits) -> tuple[Reason, str] | None:
    if deployment.tier != "cloud" or not rule.redact:
        return None
    # Fail closed: no redactor has vouched for this job.
    return "privacy", f"label {spec.privacy} asks for redaction before the cloud, and this job isn't redacted"


def _region(spec: JobSpec, deployment: Deployment, rule: PrivacyRule, limits: Limits) -> tuple[Reason, str] | None:
    if rule.regions is None or deployment.tier != "cloud" or deployment.region in rule.regions:
        return None
    return "region", f"label {spec.privacy} permits {', '.join(rule.regions)}, not {deployment.region}"


def _capability(spec: JobSpec, deployment: Deployment, rule: PrivacyRule, limits: Limits) -> tuple[Reason, str] | None:
    for need in spec.needs:
        if need not in deployment.capabilities:
            missing = [need for need in spec.needs if need not in deployment.capabilities]
            return "capability", f"has no {', '.join(missing)}"
    return None


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


CONSTRAINTS: tuple[Constraint, ...] = (_tier, _data_policy, _redaction, _region, _capability, _context, _cost_cap)


def check(spec: JobSpec, deployment: Deployment, rule: PrivacyRule, limits: Limits) -> Elimination | None:
    """The first constraint that the candidate fails, of those that need no forecast."""
    for constraint in CONSTRAINTS:
        failed = constraint(spec, deployment, rule, limits)
        if failed:
            return Elimination(deployment.name, *failed)
    return None


def too_late(deployment: Deployment, forecast: Forecast, limits: Limits) -> Elimination | None:
    """A candidate that would miss the deadline, as far as measurements say: a guess eliminates nobody."""
    if limits.finish_s is None or forecast.finish_s is None or not forecast.measured:
        return None
    if forecast.finish_s <= limits.finish_s:
        return None
    detail = f"would be done in about {forecast.finish_s:.1f} s, {max(0.0, limits.finish_s):.1f} s are left"
    return Elimination(deployment.name, "deadline", detail)
