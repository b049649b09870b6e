"""Jobs: where is it, and what became of it? Search, and one job's whole story."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import quote, urlencode

import orjson
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from fabric.contracts.ids import is_id
from fabric.contracts.job import JobState
from fabric.contracts.terms import TIERS
from fabric.gateway.caller import Caller
from fabric.gateway.console.once import Once
from fabric.gateway.console.page import Page
from fabric.gateway.console.pulse import BEAT_S
from fabric.gateway.console.session import may, needs
from fabric.gateway.console.story import story
from fabric.gateway.gateway import Gateway
from fabric.gateway.job_reads import told_job
from fabric.ledger import job_search
from fabric.ledger.job_search import SEARCHED, Wanted
from fabric.store import reads, transitions
from fabric.store.reads import JobRecord

_LIST = ("GET", "/v1/jobs")
_ONE = ("GET", "/v1/jobs/{job_id}")
_CANCEL = ("POST", "/v1/jobs/{job_id}/cancel")
_PAGE = 50
#: Jobs that haven't ended, the newest of them, that a search looks at.
_OPEN = 500


@dataclass(frozen=True, slots=True)
class Line:
    """A job in the list. Times: milliseconds since the epoch."""

    id: str
    state: str
    model: str
    tier: str | None
    deployment: str | None
    tags: tuple[str, ...]
    batch_id: str | None
    accepted_ms: int
    finished_ms: int | None
    cost_usd: float | None
    error_code: str | None


def routes(page: Page) -> list[BaseRoute]:
    rendered = Once(BEAT_S * 0.9)

    async def jobs(request: Request) -> Response:
        caller = needs(request, *_LIST)
        asked = request.query_params
        if is_id(job_id := asked.get("id", "").strip(), "job"):
            where = f"/console/jobs/{job_id}"
            if request.headers.get("hx-request"):  # which would follow, and put one page into the other
                return Response(headers={"hx-redirect": where})
            return RedirectResponse(where, status_code=303)
        wanted = Wanted(**{name: asked.get(name, "").strip() or None for name in ("state", "model", "tier", "tag")})
        before = asked.get("before", "")
        before_ms = int(before) if before.isascii() and before.isdecimal() and len(before) < 16 else None
        lines, older_ms = await _search(page.gateway, caller, wanted, before_ms)
        given = {name: value for name, value in asdict(wanted).items() if value}
        values: dict[str, Any] = {
            "lines": lines,
            "wanted": wanted,
            "id": asked.get("id", ""),
            "older": f"/console/jobs?{urlencode(given | {'before': older_ms})}" if older_ms is not None else None,
            "searched": SEARCHED,
        }
        if request.headers.get("hx-request"):
            return page.show(request, "jobs_list.html", **values)
        choices: dict[str, Any] = {
            "states": [state.value for state in JobState],
            "models": caller.permissions.among(page.gateway.catalog.by_model),
            "tiers": TIERS,
        }
        return page.show(request, "jobs.html", **values, **choices)

    async def values(caller: Caller, job_id: str) -> dict[str, Any]:
        # The same kinds of values whether the job comes from the store or the ledger.
        job = orjson.loads(orjson.dumps(await told_job(page.gateway, caller, job_id)))
        return {"job": job, "story": story(job, time.time_ns() // 1_000_000), "may_cancel": may(caller, *_CANCEL)}

    async def job(request: Request) -> Response:
        caller = needs(request, *_ONE)
        return page.show(request, "job.html", **await values(caller, request.path_params["job_id"]))

    async def live(request: Request) -> Response:
        caller, job_id = needs(request, *_ONE), request.path_params["job_id"]
        await told_job(page.gateway, caller, job_id)

        async def piece() -> str:
            return page.piece("job_live.html", **await values(caller, job_id))

        return page.live(caller, lambda: rendered.get((caller, job_id), piece))

    async def cancel(request: Request) -> Response:
        caller, job_id = needs(request, *_CANCEL), request.path_params["job_id"]
        await told_job(page.gateway, caller, job_id)
        await page.gateway.ask(transitions.cancel([job_id]))
        return page.done(f"/console/jobs/{quote(job_id)}", "cancelled")

    return [
        Route("/console/jobs", jobs),
        Route("/console/jobs/{job_id}", job),
        Route("/console/jobs/{job_id}/live", live),
        Route("/console/jobs/{job_id}/cancel", cancel, methods=["POST"]),
    ]


async def _search(
    gateway: Gateway, caller: Caller, wanted: Wanted, before_ms: int | None
) -> tuple[list[Line], int | None]:
    """The newest jobs that fit: those that haven't ended first. And before when they go on, if they do."""
    lines: list[Line] = []
    if before_ms is None:
        lines = [_open_line(record) for record in await _open(gateway, caller) if _fits(record, wanted)][:_PAGE]
    ended = await gateway.ledger.read(job_search.search, caller.tenant, wanted, limit=_PAGE + 1, before_ms=before_ms)
    here = {line.id for line in lines}
    for found in ended[:_PAGE]:
        if found.job_id not in here:
            values = asdict(found)
            lines.append(Line(id=values.pop("job_id"), **values))
    return lines, ended[_PAGE - 1].finished_ms if len(ended) > _PAGE else None


async def _open(gateway: Gateway, caller: Caller) -> list[JobRecord]:
    ids = await gateway.ask(reads.open_jobs(caller.tenant, before_ms=None, limit=_OPEN))
    records = await gateway.ask_all(map(reads.summary, ids)) if ids else []
    return [record for record in records if record is not None]


def _fits(record: JobRecord, wanted: Wanted) -> bool:
    tier = record.attempts[-1].tier if record.attempts else None
    return (
        wanted.state in (None, record.state.value)
        and wanted.model in (None, record.spec.model)
        and wanted.tier in (None, tier)
        and (wanted.tag is None or wanted.tag in record.spec.tags)
    )


def _open_line(record: JobRecord) -> Line:
    last = record.attempts[-1] if record.attempts else None
    ended = record.state.ended
    return Line(
        id=record.spec.id,
        state=record.state.value,
        model=record.spec.model,
        tier=last.tier if last else None,
        deployment=last.deployment if last else None,
        tags=record.spec.tags,
        batch_id=record.spec.batch_id,
        accepted_ms=record.accepted_ms,
        finished_ms=record.finished_ms,
        cost_usd=record.measures.cost_usd if ended else None,
        error_code=(record.error or {}).get("code"),
    )
