"""Overview: what does the fabric do now? Tiers side by side, in the same units."""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from fabric.contracts.errors import Unavailable
from fabric.gateway.caller import Caller
from fabric.gateway.console import costs
from fabric.gateway.console.once import Once
from fabric.gateway.console.page import Page
from fabric.gateway.console.pulse import BEAT_S, WINDOW_MINUTES, chart_of
from fabric.gateway.console.session import may, needs

_SHOWS = ("GET", "/v1/tiers")
_COSTS = ("GET", "/v1/costs")


def routes(page: Page) -> list[BaseRoute]:
    rendered, money = Once(BEAT_S * 0.9), Once(costs.AGE_S)

    async def values(caller: Caller) -> dict[str, Any]:
        now = await page.pulse.now()
        spent = await _spent(caller)
        return {"now": now, "minutes": WINDOW_MINUTES, "chart": json.dumps(chart_of(now)), "spent": spent}

    async def _spent(caller: Caller) -> dict[str, Any] | None:
        """``None``: not for this key, or the ledger is away; the rest of the page is shown without it."""
        if not may(caller, *_COSTS):
            return None
        try:
            return await money.get(costs.tenant_of(caller), lambda: costs.today(page.gateway, caller))
        except Unavailable:
            return None

    async def overview(request: Request) -> Response:
        return page.show(request, "overview.html", **await values(needs(request, *_SHOWS)))

    async def live(request: Request) -> Response:
        caller = needs(request, *_SHOWS)
        whose = (costs.tenant_of(caller), may(caller, *_COSTS))

        async def piece() -> str:
            return page.piece("overview_live.html", **await values(caller))

        return page.live(caller, lambda: rendered.get(whose, piece))

    return [Route("/console", overview), Route("/console/live", live)]
