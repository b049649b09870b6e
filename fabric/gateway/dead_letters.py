"""``/v1/dead-letters``: parked jobs, to be looked at, replayed or dropped; and messages that nobody can read."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import Field, ValidationError
from starlette.responses import Response

from fabric.contracts.catalog import Tier
from fabric.contracts.errors import BudgetExceeded, Conflict, InvalidRequest, NotFound, Unavailable
from fabric.contracts.job import JobState
from fabric.contracts.openai import Shape
from fabric.contracts.refusal import refusal
from fabric.contracts.request import json_object
from fabric.gateway import describe, replaying
from fabric.gateway.access import require
from fabric.gateway.body import read_body
from fabric.gateway.caller import Caller, Identified
from fabric.gateway.gateway import Gateway, Here
from fabric.gateway.job_object import message_object, parked_object
from fabric.gateway.job_reads import own_record, shown_job
from fabric.gateway.parameters import NoParameters, PageParameters, bad_cursor, listed
from fabric.gateway.responses import Json
from fabric.store import bad_messages, reads, transitions
from fabric.store.reads import JobRecord

router = APIRouter(tags=["dead letters"], responses=describe.ERRORS, default_response_class=Json)

_CURSOR = re.compile(r"([0-9]{1,15}):(job_[0-9a-z]{26})")
#: Parked jobs that are looked at for one page: a filter may fit few of them. A page may be short.
_SCANNED = 5_000


class _Filters(PageParameters):
    kind: Annotated[Literal["jobs", "messages"], Field(description="Parked jobs, or messages nobody can read.")] = (
        "jobs"
    )
    reason: Annotated[str | None, Field(max_length=64, description="The code of one of the reasons.")] = None
    tier: Annotated[Tier | None, Field(description="Of the last attempt.")] = None
    model: Annotated[str | None, Field(max_length=128, description="The logical model.")] = None
    min_age_s: Annotated[float | None, Field(ge=0, description="Parked so many seconds ago, or longer.")] = None
    max_age_s: Annotated[float | None, Field(ge=0, description="Parked so many seconds ago at most.")] = None

    def fits(self, letter: dict[str, Any]) -> bool:
        age_s = time.time() - (letter["parked_ms"] or 0) / 1000
        return (
            (self.reason is None or any(reason["code"] == self.reason for reason in letter["reasons"]))
            and (self.tier is None or (letter["queue"] or "").split(".")[1:2] == [self.tier])
            and (self.model is None or letter.get("model") == self.model)
            and (self.min_age_s is None or age_s >= self.min_age_s)
            and (self.max_age_s is None or age_s <= self.max_age_s)
        )


Filters = Annotated[_Filters, Query()]


class ReplayRequest(Shape):
    """What a replay may change. ``policy``: the job's from now on."""

    policy: str | None = Field(None, min_length=1)


@router.get("/v1/dead-letters", summary="List parked jobs, newest first", responses=describe.answers("A page of them."))
async def list_dead_letters(caller: Identified, gateway: Here, asked: Filters) -> Response:
    """With filters a page may be short, or empty, and still have a `next_cursor`. Messages that nobody can read
    (`kind=messages`) belong to no tenant: they are for `admin`, on one page."""
    if asked.kind == "messages":
        require(caller, frozenset())
        letters = [message_object(message) for message in await gateway.ask(bad_messages.kept())]
        return Json(listed([letter for letter in letters if asked.fits(letter)][: asked.limit]))
    mark = None
    if asked.cursor is not None:
        found = _CURSOR.fullmatch(asked.cursor)
        if found is None:
            raise bad_cursor()
        mark = (int(found[1]), found[2])
    page, last = await _parked(gateway, caller, asked.limit, mark, asked.fits)
    return Json(listed(page, f"{last.finished_ms}:{last.spec.id}" if last else None))


async def _parked(
    gateway: Gateway,
    caller: Caller,
    limit: int,
    before: tuple[int, str] | None,
    fits: Callable[[dict[str, Any]], bool],
) -> tuple[list[dict[str, Any]], JobRecord | None]:
    """Letters, and the last record that was looked at if there may be more behind it."""
    before_ms = None if before is None else before[0] + 1
    page: list[dict[str, Any]] = []
    last: JobRecord | None = None
    offset = 0
    while offset < _SCANNED or last is None:
        ids = await gateway.ask(reads.parked(limit=limit + 1, before_ms=before_ms, offset=offset))
        if not ids:
            return page, None
        offset += len(ids)
        for record in await gateway.ask_all(map(reads.summary, ids)):
            if record is None or record.spec.tenant != caller.tenant or not _behind(record, before):
                continue
            if len(page) == limit:
                return page, last
            letter = parked_object(record)
            if fits(letter):
                page.append(letter)
            last = record
    return page, last


def _behind(record: JobRecord, before: tuple[int, str] | None) -> bool:
    return before is None or (record.finished_ms or 0, record.spec.id) < before


@router.get("/v1/dead-letters/{job_id}", summary="A parked job", responses=describe.answers("The dead letter."))
async def show(job_id: str, caller: Identified, gateway: Here, _: NoParameters) -> Response:
    """Why it was parked, and every attempt."""
    return Json(parked_object(await _own_parked(gateway, caller, job_id)))


@router.post(
    "/v1/dead-letters/{job_id}/replay",
    summary="Run again",
    responses=describe.answers("The job."),
    openapi_extra=describe.takes("ReplayRequest", required=False),
)
async def replay(job_id: str, request: Request, caller: Identified, gateway: Here, _: NoParameters) -> Response:
    """The same job lines up again, with its history: everything is checked from the start, under `policy` if the
    body names one. A second replay changes nothing."""
    record = await own_record(gateway, caller, job_id)
    policy = await _asked_policy(request, gateway)
    state = await replaying.replay(gateway, record.spec if policy is None else replace(record.spec, policy=policy))
    if state == "over":
        raise BudgetExceeded("A budget that counts for this job has no room for another try.")
    if state == "unready":
        raise Unavailable("A budget that counts for this job is being counted; try again.", retry_after_s=1)
    if state != JobState.QUEUED:
        raise Conflict(f"The job is {state}, not parked." if state else "The job is gone.")
    gateway.trail.note("dead_letter.replayed", caller.actor, tenant=caller.tenant, subject=job_id)
    return Json(await shown_job(gateway, caller, job_id))


async def _asked_policy(request: Request, gateway: Gateway) -> str | None:
    if request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers:
        return None
    raw = json_object(await read_body(request.receive, request.headers, gateway.settings.body_limit_bytes))
    try:
        policy = ReplayRequest.model_validate(raw).policy
    except ValidationError as error:
        raise refusal(error, raw) from None
    if policy is not None and policy not in gateway.catalog.by_policy:
        known = ", ".join(sorted(gateway.catalog.by_policy))
        raise InvalidRequest(f"There is no policy {policy[:64]!r}; use one of {known}.", param="policy")
    return policy


@router.delete("/v1/dead-letters/{job_id}", summary="Drop", responses=describe.answers("What was dropped."))
async def drop(job_id: str, caller: Identified, gateway: Here, _: NoParameters) -> Response:
    """For good: its request is deleted, and only the ledger remembers it."""
    await _own_parked(gateway, caller, job_id)
    (dropped,) = await gateway.ask(transitions.drop([job_id]))
    if not dropped:
        raise _not_parked(job_id)
    gateway.trail.note("dead_letter.dropped", caller.actor, tenant=caller.tenant, subject=job_id)
    return Json({"job_id": job_id, "object": "dead_letter", "deleted": True})


async def _own_parked(gateway: Gateway, caller: Caller, job_id: str) -> JobRecord:
    record = await own_record(gateway, caller, job_id)
    if record.state is not JobState.DEAD:
        raise _not_parked(job_id)
    return record


def _not_parked(job_id: str) -> NotFound:
    return NotFound(f"The job {job_id} isn't parked.", param="job_id")
