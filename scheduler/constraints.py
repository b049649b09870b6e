"""Hard constraints: each one looks at one candidate and says why it is out, or nothing.

Pure functions. A constraint never weighs anything; a candidate that fails one is never used,
whatever it would score.
"""

from __future__ import annotations

from collections.abc import Callable

from fabric.contracts.catalog import Deployment, PrivacyRule, PrivacyRules
from fabric.contracts.decision import Elimination, Reason
from fabric.contracts.job import JobSpec

#: Weaker to stronger: a deployment may offer more than the label asks for.
_DATA_POLICY_RANK = {"none": 0, "no_training": 1, "zero_retention": 2}

Constraint = Callable[[JobSpec, Deployment, PrivacyRule], tuple[Reason, str] | None]


def _tier(spec: JobSpec, deployment: Deployment, rule: PrivacyRule) -> tuple[Reason, str] | None:
    if deployment.tier in rule.tiers:
        return None
    return "privacy", f"label {spec.privacy} permits {', '.join(rule.tiers) or 'no tier'}, not {deployment.tier}"


def _data_policy(spec: JobSpec, deployment: Deployment, rule: PrivacyRule) -> tuple[Reason, str] | None:
    if deployment.tier != "cloud":
        return None  # nothing leaves the operator's machines
    if _DATA_POLICY_RANK[deployment.data_policy] >= _DATA_POLICY_RANK[rule.data_policy]:
        return None
    offered = deployment.data_policy
    return "privacy", f"label {spec.privacy} asks for {rule.data_policy}, the provider's policy is {offered}"


def _redaction(spec: JobSpec, deployment: Deployment, rule: PrivacyRule) -> tuple[Reason, str] | None:
    if deployment.tier != "cloud" or not rule.redact:
        return None
    # Fail closed: no redactor has vouched for this job.
    return "privacy", f"label {spec.privacy} asks for redaction before the cloud, and this job isn't redacted"


def _region(spec: JobSpec, deployment: Deployment, rule: PrivacyRule) -> tuple[Reason, str] | None:
    if rule.regions is None or deployment.tier != "cloud" or deployment.region in rule.regions:
        return None
    return "region", f"label {spec.privacy} permits {', '.join(rule.regions)}, not {deployment.region}"


def _capability(spec: JobSpec, deployment: Deployment, rule: PrivacyRule) -> tuple[Reason, str] | None:
    missing = [need for need in spec.needs if need not in deployment.capabilities]
    if not missing:
        return None
    return "capability", f"has no {', '.join(missing)}"


def _context(spec: JobSpec, deployment: Deployment, rule: PrivacyRule) -> tuple[Reason, str] | None:
    wanted = spec.prompt_tokens + (spec.max_output_tokens or 0)
    if wanted <= deployment.context_window:
        return None
    return "context", f"about {wanted} tokens wanted, the window holds {deployment.context_window}"


def _cost_cap(spec: JobSpec, deployment: Deployment, rule: PrivacyRule) -> tuple[Reason, str] | None:
    if spec.max_cost_usd is None:
        return None
    cost = worst_cost(spec, deployment)
    if cost <= spec.max_cost_usd:
        return None
    return "budget", f"could cost ${cost:.6f}, the cap is ${spec.max_cost_usd:.6f}"


CONSTRAINTS: tuple[Constraint, ...] = (_tier, _data_policy, _redaction, _region, _capability, _context, _cost_cap)


def worst_cost(spec: JobSpec, deployment: Deployment) -> float:
    """US dollars if the answer takes all that it may: the limit given, or what the window leaves."""
    output = spec.max_output_tokens
    if output is None:
        output = 0 if spec.endpoint == "/v1/embeddings" else max(0, deployment.context_window - spec.prompt_tokens)
    price = deployment.price
    return (spec.prompt_tokens * price.input_per_million + output * price.output_per_million) / 1e6


def check(spec: JobSpec, deployment: Deployment, privacy: PrivacyRules) -> Elimination | None:
    """The first constraint that the candidate fails."""
    rule = privacy.of(spec.privacy)
    for constraint in CONSTRAINTS:
        failed = constraint(spec, deployment, rule)
        if failed:
            return Elimination(deployment.name, *failed)
    return None
