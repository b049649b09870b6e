"""What earlier attempts and sick places take from a job's choices. Pure.

Money that is spent counts against the cap, places that are out of tries are out, and so are those behind a
breaker that lets nobody through.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from fabric.contracts.breaker import WHY, OpenBreaker
from fabric.contracts.catalog import Catalog, Deployment
from fabric.contracts.decision import Decision, Elimination
from fabric.contracts.errors import ErrorInfo
from fabric.contracts.failures import Chain
from fabric.contracts.policy import Policy
from fabric.routing.constraints import Limits


def left_of(limits: Limits, chain: Chain) -> Limits:
    """What the attempts so far leave of the limits. Who has spent too much may still run where it costs nothing."""
    if limits.cost_usd is None or not chain.spent_usd:
        return limits
    return limits._replace(cost_usd=max(0.0, limits.cost_usd - chain.spent_usd))


def exhausted(deployment: Deployment, chain: Chain) -> Elimination | None:
    code = chain.code_at(deployment.name)
    return None if code is None else Elimination(deployment.name, "exhausted", f"its tries there are used up ({code})")


def unlike(deployment: Deployment, chain: Chain, policy: Policy, catalog: Catalog) -> Elimination | None:
    """A candidate that would answer no otherwise than one that the job has tried."""
    known = [catalog.by_deployment[name] for name in chain.overflowed if name in catalog.by_deployment]
    small = max(known, key=lambda place: place.context_window, default=None)
    if small is not None and deployment.context_window <= small.context_window:
        detail = f"its window of {deployment.context_window} tokens isn't larger than that of {small.name}"
        return Elimination(deployment.name, "context", detail)
    if chain.refused and not policy.fall_back_on_refusal:
        detail = "a content filter refused the request, and the policy doesn't set `fall_back_on_refusal`"
        return Elimination(deployment.name, "rule", detail)
    return None


def sick(deployment: Deployment, breaker: OpenBreaker) -> Elimination | None:
    """A candidate whose breaker lets nobody through now."""
    if not breaker.shut:
        return None
    if breaker.half_open:
        return Elimination(deployment.name, "health", "its breaker is half open, and a probe is under way")
    until = datetime.fromtimestamp(breaker.until_ms / 1000, UTC)
    why = WHY.get(breaker.why, breaker.why)
    return Elimination(deployment.name, "health", f"its breaker is open until {until:%H:%M:%S} UTC ({why})")


def waits_for(decision: Decision) -> Sequence[str]:
    """Places that would do if they were well."""
    return [out.deployment for out in decision.eliminated if out.reason == "health"]


def end_of_chain(decision: Decision, last: ErrorInfo) -> ErrorInfo:
    """Why a job that has been tried and has nowhere left to go ends: its last error, and what is out elsewhere."""
    others = "; ".join(f"{out.deployment}: {out.reason} ({out.detail})" for out in decision.eliminated)
    return ErrorInfo(**{**last.asdict(), "message": f"{last.message} No other place is left: {others}."})
