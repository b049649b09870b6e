"""``GET /v1/workers``: who is there to work. A worker whose heartbeat has stopped isn't."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from fabric.contracts.worker import WorkerInfo
from fabric.gateway import describe
from fabric.gateway.caller import Identified
from fabric.gateway.gateway import Here
from fabric.gateway.parameters import NoParameters, listed
from fabric.gateway.responses import Json
from fabric.store import transitions

router = APIRouter(tags=["tiers"], responses=describe.ERRORS, default_response_class=Json)


@router.get("/v1/workers", summary="Workers", responses=describe.answers("All workers that live."))
async def list_workers(caller: Identified, gateway: Here, _: NoParameters) -> Response:
    """Oldest first. `deployments`: what it serves, each with the requests that its engine runs at once (`slots`) and
    the jobs that it holds (`busy`). `draining`: it finishes what it has and takes nothing new."""
    room = await gateway.ask(transitions.room())
    return Json(listed([_shown(worker) for worker in sorted(room.workers, key=lambda w: (w.started_ms, w.id))]))


def _shown(worker: WorkerInfo) -> dict[str, Any]:
    return {
        "id": worker.id,
        "object": "worker",
        "tier": worker.tier,
        "host": worker.hostname,
        "pid": worker.pid,
        "started_at": worker.started_ms // 1000,
        "draining": worker.draining,
        "slots": sum(worker.slots.values()),
        "busy": sum(worker.running.values()),
        "deployments": [
            {"name": name, "slots": slots, "busy": worker.running.get(name, 0), "state": worker.states.get(name)}
            for name, slots in sorted(worker.slots.items())
        ],
    }
