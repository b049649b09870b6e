"""``/v1/dead-letters``: parked jobs, to be looked at, replayed or dropped."""

from __future__ import annotations

import re

from fastapi import APIRouter
from starlette.responses import Response

from fabric.contracts.errors import Conflict, NotFound
from fabric.contracts.job import JobState
from fabric.gateway import describe
from fabric.gateway.caller import Caller, Identified
from fabric.gateway.gateway import Gateway, Here
from fabric.gateway.job_object import parked_object
from fabric.gateway.job_reads import own_record, shown_job
from fabric.gateway.parameters import NoParameters, Page, bad_cursor, listed
from fabric.gateway.responses import Json
from fabric.store import reads, transitions
from fabric.store.reads import JobRecord

router = APIRouter(tags=["dead letters"], responses=describe.ERRORS, default_response_class=Json)

_CURSOR = re.compile(r"([0-9]{1,15}):(job_[0-9a-z]{26})")


@router.get("/v1/dead-letters", summary="List parked jobs, newest first", responses=describe.answers("A page of them."))
async def list_dead_letters(caller: Identified, gateway: Here, page: Page) -> Response:
    mark = None
    if page.cursor is not None:
        found = _CURSOR.fullmatch(page.cursor)
        if found is None:
            raise bad_cursor()
        mark = (int(found[1]), found[2])
    records, more = await _parked(gateway, caller, page.limit, mark)
    cursor = f"{records[-1].finished_ms}:{records[-1].spec.id}" if more else None
    return Json(listed([parked_object(record) for record in records], cursor))


async def _parked(
    gateway: Gateway, caller: Caller, limit: int, before: tuple[int, str] | None
) -> tuple[list[JobRecord], bool]:
    """Records of parked jobs, and whether there are more."""
    before_ms = None if before is None else before[0] + 1
    found: list[JobRecord] = []
    offset = 0
    while len(found) <= limit:
        ids = await gateway.ask(reads.parked(limit=limit + 1, before_ms=before_ms, offset=offset))
        if not ids:
            break
        offset += len(ids)
        records = await gateway.ask_all(map(reads.summary, ids))
        found += [r for r in records if r and r.spec.tenant == caller.tenant and _behind(r, before)]
    return found[:limit], len(found) > limit


def _behind(record: JobRecord, before: tuple[int, str] | None) -> bool:
    return before is None or (record.finished_ms or 0, record.spec.id) < before


@router.get("/v1/dead-letters/{job_id}", summary="A parked job", responses=describe.answers("The dead letter."))
async def show(job_id: str, caller: Identified, gateway: Here, _: NoParameters) -> Response:
    """Why it was parked, and every attempt."""
    return Json(parked_object(await _own_parked(gateway, caller, job_id)))


@router.post("/v1/dead-letters/{job_id}/replay", summary="Run again", responses=describe.answers("The job."))
async def replay(job_id: str, caller: Identified, gateway: Here, _: NoParameters) -> Response:
    """The same job lines up again, with its history. A second replay changes nothing."""
    await own_record(gateway, caller, job_id)
    (state,) = await gateway.ask(transitions.replay([job_id]))
    if state != JobState.QUEUED:
        raise Conflict(f"The job is {state}, not parked." if state else "The job is gone.")
    return Json(await shown_job(gateway, caller, job_id))


@router.delete("/v1/dead-letters/{job_id}", summary="Drop", responses=describe.answers("What was dropped."))
async def drop(job_id: str, caller: Identified, gateway: Here, _: NoParameters) -> Response:
    """For good: its request is deleted, and only the ledger remembers it."""
    await _own_parked(gateway, caller, job_id)
    (dropped,) = await gateway.ask(transitions.drop([job_id]))
    if not dropped:
        raise _not_parked(job_id)
    return Json({"job_id": job_id, "object": "dead_letter", "deleted": True})


async def _own_parked(gateway: Gateway, caller: Caller, job_id: str) -> JobRecord:
    record = await own_record(gateway, caller, job_id)
    if record.state is not JobState.DEAD:
        raise _not_parked(job_id)
    return record


def _not_parked(job_id: str) -> NotFound:
    return NotFound(f"The job {job_id} isn't parked.", param="job_id")
