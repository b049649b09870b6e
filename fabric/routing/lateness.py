"""A deadline that no place can meet: how late the best would be, and when to ask again. Pure."""

from __future__ import annotations

from fabric.contracts.catalog import Catalog
from fabric.contracts.decision import Decision
from fabric.contracts.errors import Busy, FabricError, InvalidRequest
from fabric.contracts.job import JobSpec
from fabric.routing.constraints import limits_of
from fabric.routing.forecast import backlog_ahead_s, predict
from fabric.routing.world import World

CODE = "deadline_too_near"
_PARAM = "fabric.deadline_s"


def too_near(spec: JobSpec, decision: Decision, catalog: Catalog, world: World) -> FabricError | None:
    """The error for a request whose deadline no place can meet, as far as measurements say. ``None``: another
    reason keeps it out, or none does.

    Where a place would make it but for what waits there, it is a 429 with the time after which enough of that is
    done; where none would, a 400.
    """
    policy, model = catalog.by_policy.get(decision.policy), catalog.by_model.get(spec.model)
    if decision.plan or spec.deadline_ms is None or policy is None or model is None:
        return None
    left_s = (spec.deadline_ms - world.now_ms) / 1000
    if limits_of(spec, policy, world.now_ms).finish_s != left_s:
        return None  # the policy's own limit is the nearer one
    late = {out.deployment for out in decision.eliminated if out.reason == "deadline"}
    ahead_s = backlog_ahead_s(spec, model.deployments, world) if world.waiting else 0.0
    forecasts = [(d.name, predict(spec, d, world, ahead_s)) for d in model.deployments if d.name in late]
    finishes = [(seen.finish_s, name, seen.service_s) for name, seen in forecasts if seen.finish_s is not None]
    if not finishes:
        return None
    finish_s, name, _ = min(finishes)
    said = f"The answer would be ready in about {finish_s:.1f} s, on {name}; the deadline is in {left_s:.1f} s."
    # What a place holds is done while time goes by; what the request itself takes there stays.
    waits = [finish_s - left_s for finish_s, _, service_s in finishes if service_s <= left_s]
    if waits:
        return Busy(f"{said} Too much waits there now.", param=_PARAM, code=CODE, retry_after_s=min(waits))
    return InvalidRequest(f"{said} No place is quicker, even when nothing waits there.", param=_PARAM, code=CODE)
