"""Finding jobs: in the store while it has their records, in the ledger afterwards."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from fabric.contracts.errors import NotFound
from fabric.contracts.ids import is_id
from fabric.contracts.job import JobState
from fabric.gateway.assembled import assembled
from fabric.gateway.caller import Caller
from fabric.gateway.gateway import Gateway
from fabric.gateway.job_object import archived_job_object, job_object
from fabric.gateway.parameters import bad_cursor
from fabric.gateway.queueing import Place, place
from fabric.gateway.restoring import Restoring
from fabric.ledger import usage
from fabric.store import reads, transitions
from fabric.store.reads import JobRecord

#: Rows of the ledger that are looked at for one page: most may be lines of batches.
_SCANNED = 1_000
_CHUNK = 100
_OPEN = re.compile(r"open:([0-9]{1,15}):(job_[0-9a-z]{26})")
_ENDED = re.compile(r"ended:([0-9]{1,15}):(job_[0-9a-z]{26}):([0-9]{1,9})")
_FIRST_ENDED = "ended"


def unknown_job(job_id: str) -> NotFound:
    return NotFound(f"There is no job {job_id[:64]!r}.", param="job_id")


async def find_record(gateway: Gateway, caller: Caller, job_id: str) -> JobRecord | None:
    """The record without its result, unless it has expired.

    Raises:
        NotFound: it is another tenant's, or this can't be a job's id.
    """
    if not is_id(job_id, "job"):
        raise unknown_job(job_id)
    record = await gateway.ask(reads.summary(job_id))
    if record is not None and record.spec.tenant != caller.tenant:
        raise unknown_job(job_id)
    return record


async def own_record(gateway: Gateway, caller: Caller, job_id: str) -> JobRecord:
    """
    Raises:
        NotFound: there is no such record, or it is another tenant's.
    """
    record = await find_record(gateway, caller, job_id)
    if record is None:
        raise unknown_job(job_id)
    return record


async def shown_job(gateway: Gateway, caller: Caller, job_id: str) -> dict[str, Any]:
    """
    Raises:
        NotFound: there is no such job, or it is another tenant's.
    """
    if not is_id(job_id, "job"):
        raise unknown_job(job_id)
    record = await gateway.ask(reads.job(job_id))
    if record is None:
        rows = await gateway.ledger.read(usage.of_job, caller.tenant, job_id)
        if not rows:
            raise unknown_job(job_id)
        return archived_job_object(rows)
    if record.spec.tenant != caller.tenant:
        raise unknown_job(job_id)
    record = replace(record, result=await _answer(gateway, record))
    places = await _places(gateway, [record])
    return job_object(record, places.get(job_id))


async def recorded(gateway: Gateway, caller: Caller, job_id: str) -> Sequence[usage.Used]:
    """The ledger's rows of a job; none while it goes on, or isn't recorded yet.

    Raises:
        NotFound: there is no such job, or it is another tenant's.
    """
    record = await find_record(gateway, caller, job_id)
    rows: Sequence[usage.Used] = await gateway.ledger.read(usage.of_job, caller.tenant, job_id)
    if record is None and not rows:
        raise unknown_job(job_id)
    return rows


async def _answer(gateway: Gateway, record: JobRecord) -> bytes | None:
    """Opened, and with what redaction took out. Raises ``BrokenSeal``."""
    of, seals = (record.spec.tenant, record.spec.id), gateway.seals
    result = record.result and seals.answer(*of, record.result)
    if record.spec.stream and record.state is JobState.SUCCEEDED:
        log = [seals.event(*of, body) for body in await gateway.ask(reads.events(record.spec.id))]
        result = assembled(record.spec.endpoint, log, record.measures.usage)
    if not record.placeholders or not result:
        return result
    return Restoring(seals.opened_placeholders(*of, record.placeholders)).result(result)


async def told_job(gateway: Gateway, caller: Caller, job_id: str) -> dict[str, Any]:
    """As ``shown_job``, without the result, which isn't even read.

    Raises:
        NotFound: there is no such job, or it is another tenant's.
    """
    record = await find_record(gateway, caller, job_id)
    if record is not None:
        places = await _places(gateway, [record])
        return job_object(record, places.get(job_id))
    rows = await gateway.ledger.read(usage.of_job, caller.tenant, job_id)
    if not rows:
        raise unknown_job(job_id)
    return archived_job_object(rows)


async def _places(gateway: Gateway, records: Iterable[JobRecord]) -> dict[str, Place]:
    waiting = [record for record in records if record.state is JobState.QUEUED]
    if not waiting:
        return {}
    room, pace_s, ranks = await asyncio.gather(
        gateway.ask(transitions.room()),
        gateway.ask(reads.pace()),
        gateway.ask_all(reads.rank(record.lane, record.spec.id) for record in waiting),
    )
    places = {}
    for record, rank in zip(waiting, ranks, strict=True):
        # Without a rank it waits for its next try, or a scheduler has it in hand.
        model = gateway.catalog.by_model.get(record.spec.model)
        if rank is not None and (found := place(record.lane, rank, room, model, pace_s)):
            places[record.spec.id] = found
    return places


async def job_page(
    gateway: Gateway, caller: Caller, limit: int, cursor: str | None
) -> tuple[list[dict[str, Any]], str | None]:
    """Jobs and the next page's cursor: the store's, newest first, then the ledger's, the last to end first.

    Raises:
        InvalidRequest: not a cursor.
    """
    jobs: list[dict[str, Any]] = []
    after: tuple[int, str, int] | None = None
    if cursor is None or (mark := _OPEN.fullmatch(cursor)):
        before = (int(mark[1]), mark[2]) if cursor is not None and mark else None
        records, more = await _open_records(gateway, caller, limit, before)
        places = await _places(gateway, records)
        jobs = [job_object(record, places.get(record.spec.id)) for record in records]
        if more:
            return jobs, f"open:{records[-1].accepted_ms}:{records[-1].spec.id}"
    elif mark := _ENDED.fullmatch(cursor):
        after = (int(mark[1]), mark[2], int(mark[3]))
    elif cursor != _FIRST_ENDED:
        raise bad_cursor()
    if len(jobs) == limit:
        rows, _ = await gateway.ledger.read(usage.page, caller.tenant, limit=1)
        return jobs, _FIRST_ENDED if rows else None
    ended, last = await _ended_jobs(gateway, caller, limit - len(jobs), after, {job["id"] for job in jobs})
    return jobs + ended, f"ended:{last[0]}:{last[1]}:{last[2]}" if last else None


async def _open_records(
    gateway: Gateway, caller: Caller, limit: int, before: tuple[int, str] | None
) -> tuple[list[JobRecord], bool]:
    """Records without results, and whether there are more."""

    def command(offset: int) -> Any:
        before_ms = None if before is None else before[0] + 1
        return reads.open_jobs(caller.tenant, before_ms=before_ms, limit=limit + 1, offset=offset)

    found: list[JobRecord] = []
    offset = 0
    while len(found) <= limit:
        ids = await gateway.ask(command(offset))
        if not ids:
            break
        offset += len(ids)
        records = await gateway.ask_all(map(reads.summary, ids))
        found += [r for r in records if r and (before is None or (r.accepted_ms, r.spec.id) < before)]
    return found[:limit], len(found) > limit


async def _ended_jobs(
    gateway: Gateway, caller: Caller, limit: int, after: tuple[int, str, int] | None, seen: set[str]
) -> tuple[list[dict[str, Any]], tuple[int, str, int] | None]:
    """Jobs that the ledger has, and where the next page goes on, if there is one. A page may be short."""
    jobs: list[dict[str, Any]] = []
    more, scanned = True, 0
    while more and scanned < _SCANNED:
        rows, more = await gateway.ledger.read(usage.page, caller.tenant, limit=_CHUNK, after=after)
        scanned += len(rows)
        for index, row in enumerate(rows):
            after = usage.mark(row)
            if row.batch_id is not None or row.job_id in seen or await _superseded(gateway, row):
                continue
            seen.add(row.job_id)
            rows_of_job = [row]
            if row.attempt > 1:  # what its earlier tries cost is the job's, too
                rows_of_job = await gateway.ledger.read(usage.of_job, row.tenant, row.job_id)
            jobs.append(archived_job_object(rows_of_job))
            if len(jobs) == limit:
                return jobs, after if more or index + 1 < len(rows) else None
    return jobs, after if more else None


async def _superseded(gateway: Gateway, row: usage.Used) -> bool:
    """A parked job that was replayed has a later end or none yet; one that is still parked is listed as open."""
    if row.state != JobState.DEAD:
        return False
    if await gateway.ask(reads.state(row.job_id)) is not None:
        return True
    rows: Sequence[usage.Used] = await gateway.ledger.read(usage.of_job, row.tenant, row.job_id)
    return rows[-1].attempt != row.attempt
