"""Batches: how far are they, when are they done, what do they cost?"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from fabric.batches.wake import wake
from fabric.contracts.errors import NotFound, Unavailable
from fabric.contracts.ids import is_id
from fabric.gateway.caller import Caller
from fabric.gateway.console.once import Once
from fabric.gateway.console.page import Page
from fabric.gateway.console.pulse import BEAT_S
from fabric.gateway.console.session import may, needs
from fabric.ledger import batches
from fabric.ledger.batches import Batch
from fabric.ledger.report import batch_costs, batch_report

_LIST = ("GET", "/v1/batches")
_ONE = ("GET", "/v1/batches/{batch_id}")
_CANCEL = ("POST", "/v1/batches/{batch_id}/cancel")
_PAGE = 25
#: A report adds up all lines of its batch.
_REPORT_S = 5.0


@dataclass(frozen=True, slots=True)
class Progress:
    """A batch, and how it gets on. ``eta_s``: at its pace so far; ``None`` while that can't be told."""

    batch: Batch
    eta_s: float | None

    @property
    def done(self) -> int:
        return self.batch.completed + self.batch.failed

    @property
    def share(self) -> float:
        return self.done / self.batch.total if self.batch.total else 0.0

    @property
    def may_be_cancelled(self) -> bool:
        return self.batch.status in ("validating", "in_progress")

    @property
    def ended_ms(self) -> int | None:
        batch = self.batch
        return batch.completed_ms or batch.failed_ms or batch.expired_ms or batch.cancelled_ms


def progress(batch: Batch, now_ms: int) -> Progress:
    done = batch.completed + batch.failed
    running = batch.status == "in_progress" and batch.in_progress_ms is not None
    if not (running and done and now_ms > (batch.in_progress_ms or 0)):
        return Progress(batch, None)
    return Progress(batch, (now_ms - (batch.in_progress_ms or 0)) / 1000 / done * batch.open)


def routes(page: Page) -> list[BaseRoute]:
    lists, ones, reports, sums = Once(BEAT_S * 0.9), Once(BEAT_S * 0.9), Once(_REPORT_S), Once(_REPORT_S)

    async def listed(caller: Caller, after: str | None) -> dict[str, Any]:
        found, more = await page.gateway.ledger.read(batches.page, caller.tenant, limit=_PAGE, after=after)
        now_ms = time.time_ns() // 1_000_000
        ids = tuple(batch.id for batch in found)
        return {
            "shown": [progress(batch, now_ms) for batch in found],
            "costs": await sums.get(ids, lambda: page.gateway.ledger.read(batch_costs, ids)),
            "older": found[-1].id if more else None,
            "after": after,
            "may_cancel": may(caller, *_CANCEL),
        }

    async def one(caller: Caller, batch_id: str) -> dict[str, Any]:
        if not is_id(batch_id, "batch"):
            raise NotFound("There is no such batch.")
        ledger = page.gateway.ledger
        batch = await ledger.read(batches.get, caller.tenant, batch_id)
        report = await reports.get(batch_id, lambda: ledger.read(batch_report, batch_id))
        shown = progress(batch, time.time_ns() // 1_000_000)
        plan = orjson.loads(batch.plan) if batch.plan and batch.status == "in_progress" else None
        return {"shown": shown, "report": report, "plan": plan, "may_cancel": may(caller, *_CANCEL)}

    def after(request: Request) -> str | None:
        asked = request.query_params.get("after")
        return asked if asked and is_id(asked, "batch") else None

    async def show_list(request: Request) -> Response:
        return page.show(request, "batches.html", **await listed(needs(request, *_LIST), after(request)))

    async def live_list(request: Request) -> Response:
        caller, mark = needs(request, *_LIST), after(request)

        async def piece() -> str:
            return page.piece("batches_live.html", **await listed(caller, mark))

        return page.live(caller, lambda: lists.get((caller, mark), piece))

    async def show_one(request: Request) -> Response:
        return page.show(request, "batch.html", **await one(needs(request, *_ONE), request.path_params["batch_id"]))

    async def live_one(request: Request) -> Response:
        caller, batch_id = needs(request, *_ONE), request.path_params["batch_id"]
        await one(caller, batch_id)

        async def piece() -> str:
            return page.piece("batch_live.html", **await one(caller, batch_id))

        return page.live(caller, lambda: ones.get((caller, batch_id), piece))

    async def cancel(request: Request) -> Response:
        caller, batch_id = needs(request, *_CANCEL), request.path_params["batch_id"]
        await page.gateway.ledger.write(batches.cancel, caller.tenant, batch_id, time.time_ns() // 1_000_000)
        with contextlib.suppress(Unavailable):  # it is kept; it only begins later
            await page.gateway.ask(wake())
        return page.done(f"/console/batches/{batch_id}", "cancelled")

    return [
        Route("/console/batches", show_list),
        Route("/console/batches/live", live_list),
        Route("/console/batches/{batch_id}", show_one),
        Route("/console/batches/{batch_id}/live", live_one),
        Route("/console/batches/{batch_id}/cancel", cancel, methods=["POST"]),
    ]
