"""Costs: what was spent, where and by whom, and what would the same have cost in the cloud?"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from fabric.gateway.caller import Caller
from fabric.gateway.console.once import Once
from fabric.gateway.console.page import Page
from fabric.gateway.console.session import needs
from fabric.gateway.gateway import Gateway
from fabric.ledger import costs
from fabric.ledger.costs import Filter, Row
from fabric.ledger.sums import DAY_MS

_SHOWS = ("GET", "/v1/costs")
#: Of jobs that ended in the backlog.
NOT_PLACED = "not placed"
_DAYS = (7, 30, 90)
#: Money moves slowly: one reading serves everybody who looks in this time.
AGE_S = 5.0
_SUMMED = ("requests", "input_tokens", "output_tokens", "cost_usd", "cloud_equivalent_usd", "compared_usd")


def routes(page: Page) -> list[BaseRoute]:
    once = Once(AGE_S)

    async def show(request: Request) -> Response:
        caller = needs(request, *_SHOWS)
        asked = request.query_params.get("days", "")
        days = int(asked) if asked in map(str, _DAYS) else _DAYS[1]
        since_ms = _today_ms() - (days - 1) * DAY_MS
        rows = await once.get((tenant_of(caller), since_ms), lambda: _rows(page.gateway, caller, since_ms))
        return page.show(request, "costs.html", **_values(rows, since_ms, days), everybody=tenant_of(caller) is None)

    return [Route("/console/costs", show)]


def tenant_of(caller: Caller) -> str | None:
    """Whose money a caller sees; ``None``: everybody's."""
    return None if "admin" in caller.scopes else caller.tenant


async def today(gateway: Gateway, caller: Caller) -> dict[str, Any]:
    """What was spent since midnight (UTC), and what it saved: of all and by tier."""
    rows = await _rows(gateway, caller, _today_ms())
    return {"total": summed(rows), "tiers": by(rows, "tier")}


def _today_ms() -> int:
    return time.time_ns() // 1_000_000 // DAY_MS * DAY_MS


async def _rows(gateway: Gateway, caller: Caller, since_ms: int) -> list[Row]:
    which = Filter(since_ms=since_ms, tenant=tenant_of(caller))
    rows, _ = await gateway.ledger.read(costs.grouped, which, ("day", "tier", "tenant"))
    return rows


def summed(rows: Iterable[Row]) -> dict[str, Any]:
    """``saved_usd``: cloud equivalent less cost, of what can be compared; ``None`` where nothing can."""
    total: dict[str, Any] = dict.fromkeys(_SUMMED, 0)
    for row in rows:
        for name in _SUMMED:
            total[name] += row[name]
    compared = total["cloud_equivalent_usd"] or total["compared_usd"]
    return total | {"saved_usd": total["cloud_equivalent_usd"] - total["compared_usd"] if compared else None}


def by(rows: Sequence[Row], name: str) -> dict[str, dict[str, Any]]:
    """Sums by tier or tenant; jobs that ended before they had a tier are ``not placed``."""
    names = sorted({row[name] or NOT_PLACED for row in rows})
    return {one: summed(row for row in rows if (row[name] or NOT_PLACED) == one) for one in names}


def _values(rows: Sequence[Row], since_ms: int, days: int) -> dict[str, Any]:
    at = [since_ms + number * DAY_MS for number in range(days)]
    spent: dict[tuple[int, str], float] = {}
    for row in rows:
        place = (row["day"], row["tier"] or NOT_PLACED)
        spent[place] = spent.get(place, 0.0) + row["cost_usd"]
    tiers = sorted({tier for _, tier in spent})
    per_tier = {tier: [round(spent.get((ms, tier), 0.0), 9) for ms in at] for tier in tiers}
    chart = {"x": [ms // 1000 for ms in at], "unit": "US$", "day": True}
    series = [{"name": tier, "y": values} for tier, values in per_tier.items() if tier != NOT_PLACED or any(values)]
    table = [
        {"day_ms": ms, "by_tier": [per_tier[tier][number] for tier in tiers]}
        for number, ms in enumerate(at)
        if any((ms, tier) in spent for tier in tiers)
    ]
    return {
        "days": days,
        "choices": _DAYS,
        "chart": json.dumps({**chart, "series": series}),
        "tiers": tiers,
        "table": table[::-1],
        "total": summed(rows),
        "by_tier": by(rows, "tier"),
        "by_tenant": by(rows, "tenant"),
    }
