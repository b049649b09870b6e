"""``POST /v1/route``: where a request would go, why not elsewhere, when, and what it would cost. A dry run."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from fabric.contracts.decision import Decision, Elimination
from fabric.contracts.errors import InvalidRequest
from fabric.contracts.job import Endpoint, JobSpec, Priority
from fabric.contracts.openai import ChatCompletionRequest, CompletionRequest, EmbeddingRequest
from fabric.contracts.request import InferenceRequest, json_object
from fabric.gateway import describe
from fabric.gateway.admission import with_headers
from fabric.gateway.body import read_body
from fabric.gateway.caller import Caller, Identified
from fabric.gateway.gateway import Gateway, Here
from fabric.gateway.jobs import JobRequest, parse_job
from fabric.gateway.outlook import used_budgets, world_now
from fabric.gateway.parameters import NoParameters
from fabric.gateway.responses import Json
from fabric.gateway.screening import screened_spec
from fabric.gateway.submission import parsed
from fabric.routing import Denied, World, admit, decide, refusal, too_near, waits_for
from fabric.store import reads, transitions

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
    asked, priority = _parsed(raw, gateway, caller)
    spec = asked.spec(
        job_id=_JOB_ID,
        tenant=caller.tenant,
        key_id=caller.key_id,
        default_privacy=gateway.catalog.privacy.default,
        default_priority=priority,
    )
    spec = await screened_spec(spec, asked, gateway.catalog)
    spec = with_headers(spec, request.headers, gateway.catalog)
    return Json(route_object(spec, gateway, await world(gateway)))


def _parsed(raw: dict[str, Any], gateway: Gateway, caller: Caller) -> tuple[InferenceRequest, Priority]:
    """The request, and the class that it has when it names none: as where it would be sent to."""
    if "endpoint" in raw or "body" in raw:
        return parse_job(raw, gateway, caller), "standard"
    endpoint = next((endpoint for field, endpoint in _ENDPOINTS.items() if field in raw), None)
    if endpoint is None:
        raise InvalidRequest(
            "Send the body of an inference request (with `messages`, `prompt` or `input`), or `endpoint` and `body`.",
            param="endpoint",
            code="missing_required_parameter",
        )
    return parsed(endpoint, raw, gateway.catalog, caller, gateway.trail), "interactive"


async def world(gateway: Gateway) -> World:
    """As it is for a job that comes now and lines up behind those that wait. Raises ``Unavailable``."""
    room, experience = await asyncio.gather(gateway.ask(transitions.room()), gateway.ask(reads.experience()))
    return world_now(room, experience, gateway.catalog, await used_budgets(gateway))


def route_object(spec: JobSpec, gateway: Gateway, world: World) -> dict[str, Any]:
    catalog, hash_ = gateway.catalog, gateway.policy_hash
    try:
        spec = admit(spec, catalog, hash_, world.now_ms).spec
    except Denied as denied:
        out = tuple(Elimination(d.name, "rule", denied.message) for d in catalog.by_model[spec.model].deployments)
        decision = Decision(spec.policy or catalog.default_policy, hash_, (), out, denied.rule)
        return {"object": "route", "decision": decision, "chosen": None, "error": denied.info}
    decision = decide(spec, catalog, hash_, world)
    # Behind open breakers it would wait.
    error = None if decision.plan or waits_for(decision) else refusal(spec, decision, catalog, world.now_ms)
    if late := too_near(spec, decision, catalog, world):
        error = late.info
    return {
        "object": "route",
        "privacy": spec.privacy,
        "raised_from": spec.raised_from,
        "entities": spec.entities,
        "redacted": spec.redacted,
        "decision": decision,
        "chosen": decision.chosen,
        "error": error,
    }
