"""``GET /v1/costs``: what it cost, and what it would have cost elsewhere; ``/v1/costs/summary`` in one view."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from fabric.accounting.figures import cost_row, tier_rows
from fabric.accounting.forecast import LOOK_BACK_DAYS, month_forecast
from fabric.gateway import describe
from fabric.gateway.caller import Caller, Identified
from fabric.gateway.gateway import Gateway, Here
from fabric.gateway.responses import Json
from fabric.gateway.spending import Span, SpanQuery, Spending, spending_page, wanted
from fabric.ledger import costs, worker_hours
from fabric.ledger.costs import Filter
from fabric.ledger.sums import DAY_MS

router = APIRouter(tags=["usage"], responses=describe.ERRORS, default_response_class=Json)


@router.get("/v1/costs", summary="What it cost", responses=describe.answers("A page of rows."))
async def list_costs(caller: Identified, gateway: Here, asked: Spending) -> Response:
    """As `GET /v1/usage`, with the parts of the cost, the cloud equivalent, savings, and how well it was foreseen."""
    return Json(await spending_page(gateway, caller, asked, cost_row))


@router.get("/v1/costs/summary", summary="Costs in one view", responses=describe.answers("The summary."))
async def summary(caller: Identified, gateway: Here, asked: Span) -> Response:
    """The whole, each tier, the month's forecast; for `admin`, of the whole fabric, the hours of its workers, too."""
    return Json(await _summary(gateway, caller, asked))


async def _summary(gateway: Gateway, caller: Caller, asked: SpanQuery) -> dict[str, Any]:
    which = wanted(caller, asked)
    (whole,), _ = await gateway.ledger.read(costs.grouped, which)
    rows, _ = await gateway.ledger.read(costs.grouped, which, ("tier",))
    # Hours are nobody's in particular: they are shown where everybody's work is.
    everything = which == Filter(since_ms=which.since_ms, until_ms=which.until_ms) and "admin" in caller.scopes
    hours = await gateway.ledger.read(worker_hours.machines, which.since_ms, which.until_ms) if everything else None
    baseline = gateway.catalog.baseline
    return {
        "object": "cost_summary",
        "since": _iso(which.since),
        "until": _iso(which.until),
        "total": cost_row(whole, ()),
        "tiers": tier_rows(rows, hours),
        "month": await _month(gateway, which),
        "baseline": baseline and baseline.model_dump(exclude_none=True),
    }


def _iso(ms: int | None) -> str | None:
    return None if ms is None else f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%dT%H:%M:%SZ}"


async def _month(gateway: Gateway, which: Filter) -> dict[str, Any]:
    """Of the same filters, but of this month, whatever time was asked for."""
    now_ms = int(time.time() * 1000)
    since = now_ms // DAY_MS * DAY_MS - max(LOOK_BACK_DAYS, 31) * DAY_MS
    rows, _ = await gateway.ledger.read(costs.grouped, replace(which, since_ms=since, until_ms=None), ("day",))
    daily = {datetime.fromtimestamp(row["day"] / 1000, UTC).date(): row["cost_usd"] for row in rows}
    found = month_forecast(daily, datetime.fromtimestamp(now_ms / 1000, UTC))
    return {
        "month": found.month,
        "spent_usd": found.spent_usd,
        "forecast_usd": found.forecast_usd,
        "based_on_days": found.based_on_days,
    }
