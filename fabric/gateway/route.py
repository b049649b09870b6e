"""``POST /v1/route``: where a request would go, why not elsewhere, when, and what it would cost. A dry run."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from fabric.contracts.errors import InvalidRequest
from fabric.contracts.experience import Experience
from fabric.contracts.job import Endpoint, JobSpec, Priority
from fabric.contracts.openai import ChatCompletionRequest, CompletionRequest, EmbeddingRequest
from fabric.contracts.request import InferenceRequest, json_object, parse_request
from fabric.gateway import describe
from fabric.gateway.body import read_body
from fabric.gateway.caller import Identified
from fabric.gateway.gateway import Gateway, Here
from fabric.gateway.jobs import JobRequest, parse_job
from fabric.gateway.parameters import NoParameters
from fabric.gateway.responses import Json
from fabric.routing import World, decide, refusal, world_of
from fabric.store import reads, transitions
from fabric.store.transitions import Room

router = APIRouter(tags=["jobs"], responses=describe.ERRORS, default_response_class=Json)

#: What the route takes.
ROUTED = (JobRequest, ChatCompletionRequest, CompletionRequest, EmbeddingRequest)
#: The field that tells OpenAI's bodies apart.
_ENDPOINTS: dict[str, Endpoint] = {
    "messages": "/v1/chat/completions",
    "prompt": "/v1/completions",
    "input": "/v1/embeddings",
}
#: No job has it: the dry run makes none.
_JOB_ID = "job_dry_run"


@router.post(
    "/v1/route",
    summary="Where a request would go",
    responses=describe.answers("The decision."),
    openapi_extra=describe.takes("RouteRequest"),
)
async def route(request: Request, caller: Identified, gateway: Here, _: NoParameters) -> Response:
    """Takes what `POST /v1/jobs` takes, or the body of an inference route. Nothing runs and nothing is stored.
    `chosen` is null where no place is permitted, and `error` says what the request would be answered with."""
    raw = json_object(await read_body(request.receive, request.headers, gateway.settings.body_limit_bytes))
    asked, priority = _parsed(raw, gateway)
    spec = asked.spec(
        job_id=_JOB_ID,
        tenant=caller.tenant,
        key_id=caller.key_id,
        default_privacy=gateway.catalog.privacy.default,
        default_priority=priority,
    )
    room, experience = await asyncio.gather(gateway.ask(transitions.room()), gateway.ask(reads.experience()))
    return Json(route_object(spec, gateway, world(room, experience, gateway)))


def _parsed(raw: dict[str, Any], gateway: Gateway) -> tuple[InferenceRequest, Priority]:
    """The request, and the class that it has when it names none: as where it would be sent to."""
    if "endpoint" in raw or "body" in raw:
        return parse_job(raw, gateway), "standard"
    endpoint = next((endpoint for field, endpoint in _ENDPOINTS.items() if field in raw), None)
    if endpoint is None:
        raise InvalidRequest(
            "Send the body of an inference request (with `messages`, `prompt` or `input`), or `endpoint` and `body`.",
            param="endpoint",
            code="missing_required_parameter",
        )
    return parse_request(endpoint, raw, gateway.catalog), "interactive"


def world(room: Room, experience: Experience, gateway: Gateway) -> World:
    """As it is for a job that comes now and lines up behind those that wait."""
    waiting: Counter[tuple[str, Priority]] = Counter()
    for lane in room.lanes:
        waiting[lane.model, lane.priority] += lane.length
    now_ms = time.time_ns() // 1_000_000
    return world_of(room.workers, room.busy, gateway.catalog, experience=experience, now_ms=now_ms, waiting=waiting)


def route_object(spec: JobSpec, gateway: Gateway, world: World) -> dict[str, Any]:
    decision = decide(spec, gateway.catalog, gateway.policy_hash, world)
    error = None if decision.plan else refusal(spec, decision, gateway.catalog, world.now_ms)
    return {"object": "route", "decision": decision, "chosen": decision.chosen, "error": error}
