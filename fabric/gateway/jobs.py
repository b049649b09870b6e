"""``/v1/jobs``: work to be done without a connection that waits for it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.responses import Response

from fabric.contracts.errors import Conflict, FabricError, InvalidRequest
from fabric.contracts.job import Endpoint, JobState
from fabric.contracts.openai import FabricOptions, Shape
from fabric.contracts.refusal import refusal
from fabric.contracts.request import InferenceRequest, json_object
from fabric.gateway import describe
from fabric.gateway.admission import admitted, charged, metered
from fabric.gateway.body import read_body
from fabric.gateway.caller import Caller, Identified
from fabric.gateway.gateway import Gateway, Here
from fabric.gateway.job_events import JobEvents
from fabric.gateway.job_reads import find_record, job_page, own_record, recorded, shown_job
from fabric.gateway.parameters import NoParameters, Page, listed
from fabric.gateway.request_trace import RequestTrace, request_trace
from fabric.gateway.responses import Json
from fabric.gateway.screening import screened
from fabric.gateway.submission import idempotency_key, new_job, parsed
from fabric.store import transitions

router = APIRouter(tags=["jobs"], responses=describe.ERRORS, default_response_class=Json)


class JobRequest(Shape):
    """``POST /v1/jobs``. ``body`` is what ``endpoint`` takes; ``fabric`` may stand inside of it instead."""

    endpoint: Endpoint
    body: dict[str, Any]
    fabric: FabricOptions | None = None


@router.post(
    "/v1/jobs",
    status_code=202,
    summary="Submit a job",
    responses=describe.answers("The job.", status=202),
    openapi_extra=describe.takes("JobRequest", idempotent=True),
)
async def submit(request: Request, caller: Identified, gateway: Here, _: NoParameters) -> Response:
    """Answers at once. The job goes on whether anybody waits for it or not; a streamed answer's tokens are
    events of the job."""
    with request_trace(gateway.settings.tracer, "/v1/jobs", request.headers, status=202) as trace:
        return await _submit(request, caller, gateway, trace)


async def _submit(request: Request, caller: Caller, gateway: Gateway, trace: RequestTrace | None) -> Response:
    key = idempotency_key(request.headers)
    body = await read_body(request.receive, request.headers, gateway.settings.body_limit_bytes)
    asked = parse_job(json_object(body), gateway, caller)
    # Of one moment: another file may count while a long text is searched.
    catalog, hash_ = gateway.catalog, gateway.policy_hash
    job = new_job(
        asked,
        caller,
        key,
        privacy=catalog.privacy.default,
        priority="standard",
        accepted_under=hash_,
        secrets=gateway.settings.secrets,
        trail=gateway.trail,
    )
    if trace:
        job = trace.traced(job)
    job = await screened(job, asked, catalog, caller, gateway.trail)
    job, shadow = admitted(job, request.headers, catalog, hash_)
    job = metered(charged(job, catalog, caller.permissions), caller, catalog)
    shadow = shadow and charged(shadow, catalog, caller.permissions)
    await gateway.outlook.check(job.spec)
    job_id = await gateway.accept(job, request.scope)
    if trace:
        trace.job_id = job_id
    if shadow is not None and job_id == job.spec.id:
        gateway.shadows.send(shadow)
    return Json(await shown_job(gateway, caller, job_id), 202)


def parse_job(raw: dict[str, Any], gateway: Gateway, caller: Caller) -> InferenceRequest:
    """
    Raises:
        InvalidRequest: a field is wrong; ``param`` names it.
        ModelNotFound: the catalogue has no such model, or none for this key.
    """
    try:
        asked = JobRequest.model_validate(raw)
    except ValidationError as error:
        raise refusal(error, raw) from None
    inner = asked.body
    if asked.fabric is not None:
        if inner.get("fabric") is not None:
            raise InvalidRequest("Give `fabric` once, beside `body` or inside of it.", param="body.fabric")
        inner = {**inner, "fabric": raw["fabric"]}
    try:
        request = parsed(asked.endpoint, inner, gateway.catalog, caller, gateway.trail)
    except FabricError as error:
        if error.param is not None and "fabric" not in raw:
            error.param = f"body.{error.param}"
        raise
    if request.body.get("encoding_format") == "base64":
        raise InvalidRequest(
            "A job's embeddings come as numbers. Leave `encoding_format` out, or use POST /v1/embeddings.",
            param="body.encoding_format",
            code="unsupported_parameter",
        )
    return request


@router.get("/v1/jobs", summary="List jobs, newest first", responses=describe.answers("A page of jobs."))
async def list_jobs(caller: Identified, gateway: Here, page: Page) -> Response:
    """Those that wait or run, then those that have ended. Lines of batches are left out, and so are results."""
    jobs, cursor = await job_page(gateway, caller, page.limit, page.cursor)
    return Json(listed(jobs, cursor))


@router.get("/v1/jobs/{job_id}", summary="A job", responses=describe.answers("The job."))
async def show(job_id: str, caller: Identified, gateway: Here, _: NoParameters) -> Response:
    """Its state, place in the queue, attempts, decision, usage, cost, and its result or error."""
    return Json(await shown_job(gateway, caller, job_id))


@router.get(
    "/v1/jobs/{job_id}/events",
    summary="What happens to a job",
    responses=describe.answers("Server-sent events, to the job's end.", "text/event-stream"),
    openapi_extra={"parameters": [describe.LAST_EVENT_ID]},
)
async def events(job_id: str, request: Request, caller: Identified, gateway: Here, _: NoParameters) -> Response:
    """From its first event, or from the one behind `Last-Event-ID`, to its end."""
    record = await own_record(gateway, caller, job_id)
    if record.spec.batch_id is not None:
        raise Conflict(f"The job is a line of {record.spec.batch_id}: lines have no events, batches have a status.")
    return JobEvents(gateway, caller.tenant, job_id, _last_event_id(request.headers))


def _last_event_id(headers: Headers) -> int:
    text = headers.get("last-event-id", "")
    if not text:
        return 0
    if not (text.isascii() and text.isdecimal() and len(text) <= 15):
        raise InvalidRequest("`Last-Event-ID` must be the id of an event of this job.", param="Last-Event-ID")
    return int(text)


@router.delete("/v1/jobs/{job_id}", summary="Delete what a job said", responses=describe.answers("It is gone."))
async def delete(job_id: str, caller: Identified, gateway: Here, _: NoParameters) -> Response:
    """Of one that has ended: its answer and its log are gone at once. What it took stays in the accounts."""
    rows = await recorded(gateway, caller, job_id)
    if rows and rows[-1].batch_id is not None:
        raise Conflict(f"The job is a line of {rows[-1].batch_id}: delete that batch's output file.")
    (state,) = await gateway.ask(transitions.erase([job_id])) if rows else (JobState.QUEUED,)
    if state == JobState.DEAD:
        raise Conflict("The job is parked: drop it with DELETE /v1/dead-letters/{job_id}.")
    if state and not JobState(state).ended:
        raise Conflict("The job hasn't ended, or is being recorded: cancel it, or try again in a moment.")
    gateway.trail.note("job.deleted", caller.actor, tenant=caller.tenant, subject=job_id)
    return Json({"id": job_id, "object": "job", "deleted": True})


@router.post("/v1/jobs/{job_id}/cancel", summary="Stop a job", responses=describe.answers("The job."))
async def cancel(job_id: str, caller: Identified, gateway: Here, _: NoParameters) -> Response:
    """A waiting job ends at once; a running one is stopped in its engine first, so that it may still be
    `running` in the answer. One that has ended stays as it is."""
    if await find_record(gateway, caller, job_id):
        await gateway.ask(transitions.cancel([job_id]))
    return Json(await shown_job(gateway, caller, job_id))
