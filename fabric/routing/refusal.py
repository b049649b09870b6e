"""Why a job with an empty plan can't run, for its caller."""

from __future__ import annotations

from fabric.contracts.catalog import Catalog
from fabric.contracts.decision import Decision
from fabric.contracts.errors import (
    ContextOverflow,
    DeadlineExceeded,
    ErrorInfo,
    InvalidRequest,
    ModelNotFound,
    NoEligibleDeployment,
)
from fabric.contracts.job import JobSpec
from fabric.contracts.policy import Policy
from fabric.routing.constraints import limits_of


def refusal(spec: JobSpec, decision: Decision, catalog: Catalog, now_ms: int = 0) -> ErrorInfo:
    """For a decision whose plan is empty. ``now_ms``: of the world that it was made in."""
    if spec.model not in catalog.by_model:
        return ModelNotFound(f"There is no model {spec.model!r} here any more.", param="model").info
    if decision.policy not in catalog.by_policy:
        known = ", ".join(sorted(catalog.by_policy))
        message = f"There is no policy {decision.policy!r} here any more; there are {known}."
        return InvalidRequest(message, param="fabric.policy", code="unknown_policy").info
    # Of a pinned job only that one place matters, unless it has gone from the catalogue.
    asked_for = tuple(out for out in decision.eliminated if spec.deployment in (None, out.deployment))
    eliminated = asked_for or decision.eliminated
    if all(out.reason == "context" for out in eliminated):
        details = "; ".join(f"{out.deployment}: {out.detail}" for out in eliminated)
        return ContextOverflow(f"The request is too long for every deployment of {spec.model!r} ({details}).").info
    reasons = "; ".join(f"{out.deployment}: {out.reason} ({out.detail})" for out in eliminated)
    late = any(out.reason == "deadline" for out in eliminated)
    if late and _deadline_binds(spec, catalog.by_policy[decision.policy], now_ms):
        # As if it had waited for its end, only sooner.
        return DeadlineExceeded(f"No deployment of {spec.model!r} can meet the deadline: {reasons}.").info
    return NoEligibleDeployment(f"No deployment of {spec.model!r} may run this job: {reasons}.").info


def _deadline_binds(spec: JobSpec, policy: Policy, now_ms: int) -> bool:
    """Whether it is the job's own deadline that is too near, and not the policy's limit."""
    return limits_of(spec, policy, now_ms).finish_s != policy.max_latency_s
