"""``GET /v1/tiers``: what there is to run on, who is there to work, and what waits."""

from __future__ import annotations

from collections import Counter
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from fabric.contracts.breaker import OpenBreaker
from fabric.contracts.catalog import TIERS, Catalog, Deployment, Tier
from fabric.gateway import describe
from fabric.gateway.caller import Identified
from fabric.gateway.gateway import Here
from fabric.gateway.parameters import NoParameters, listed
from fabric.gateway.responses import Json
from fabric.store import counts, transitions
from fabric.store.counts import Counts
from fabric.store.transitions import Room

router = APIRouter(tags=["tiers"], responses=describe.ERRORS, default_response_class=Json)


@router.get("/v1/tiers", summary="Tiers, deployments, workers", responses=describe.answers("All tiers."))
async def list_tiers(caller: Identified, gateway: Here, _: NoParameters) -> Response:
    """`slots`: requests that engines run at once; `busy`: jobs sent to workers that haven't ended; `backlog`:
    jobs that wait and could run there (one that could run in two places counts for both); `dead_letters`: jobs that
    are out of tries there and wait for their next place; `breaker`: whether jobs are let through; `states`: on how
    many workers it is `loaded`, `loading`, `evicted` (it is loaded when it is asked for) or `away`. `config`: the
    rules in force, and what is wrong with the configuration file if it has changed and doesn't count.
    `prediction_error`: |predicted - actual| / actual of the `first_token` and the `finish`, of measured predictions."""
    room, totals = await gateway.ask(transitions.room()), await gateway.ask(counts.totals())
    return Json({**listed(tiers(gateway.catalog, room, totals)), "config": gateway.configuration.shown()})


_NOTHING: Counts = {}


def tiers(catalog: Catalog, room: Room, totals: Counts = _NOTHING) -> list[dict[str, Any]]:
    return [shown for tier in TIERS if (shown := _tier(tier, catalog, room, totals))["deployments"]]


def _tier(tier: Tier, catalog: Catalog, room: Room, totals: Counts) -> dict[str, Any]:
    models = [model for model in catalog.models if any(d.tier == tier for d in model.deployments)]
    deployments = [_deployment(model.name, d, room) for model in models for d in model.deployments if d.tier == tier]
    names = {model.name for model in models}
    return {
        "id": tier,
        "object": "tier",
        "tier": tier,
        "workers": sum(worker.tier == tier for worker in room.workers),
        "slots": sum(shown["slots"] for shown in deployments),
        "busy": sum(shown["busy"] for shown in deployments),
        "backlog": sum(lane.length for lane in room.lanes if lane.model in names),
        "dead_letters": room.dead.get(tier, 0),
        "prediction_error": {kind: _error(totals, kind, tier) for kind in ("first_token", "finish")},
        "deployments": deployments,
    }


def _error(totals: Counts, kind: str, tier: Tier) -> dict[str, float | None]:
    """``None``: there was no such prediction yet."""
    return {
        name: None if share is None else round(share, 3)
        for name, share in (
            ("p50", counts.quantile(totals, kind, tier, 0.5, "error")),
            ("p90", counts.quantile(totals, kind, tier, 0.9, "error")),
        )
    }


def _deployment(model: str, deployment: Deployment, room: Room) -> dict[str, Any]:
    workers = [worker for worker in room.workers if deployment.name in worker.capacity]
    return {
        "name": deployment.name,
        "model": model,
        "engine": deployment.engine,
        "context_window": deployment.context_window,
        "capabilities": list(deployment.capabilities),
        "price": deployment.price.model_dump(exclude_none=True),
        "workers": len(workers),
        "draining": sum(worker.draining for worker in workers),
        "slots": sum(worker.slots.get(deployment.name, 0) for worker in workers if not worker.draining),
        "states": dict(Counter(state for worker in workers if (state := worker.states.get(deployment.name)))),
        "busy": room.busy.get(deployment.name, 0),
        "backlog": sum(lane.length for lane in room.lanes if lane.model == model),
        "breaker": _breaker(room.breakers.get(deployment.name)),
    }


def _breaker(breaker: OpenBreaker | None) -> dict[str, Any]:
    """``until_ms``: when it lets a probe through; milliseconds since the epoch."""
    if breaker is None:
        return {"state": "closed", "until_ms": None, "reason": None}
    return {"state": breaker.state, "until_ms": breaker.until_ms, "reason": breaker.why}
