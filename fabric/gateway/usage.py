"""``GET /v1/usage``: requests and tokens, as the ledger has them."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from fabric.accounting.figures import usage_row
from fabric.gateway import describe
from fabric.gateway.caller import Identified
from fabric.gateway.gateway import Here
from fabric.gateway.responses import Json
from fabric.gateway.spending import Spending, spending_page

router = APIRouter(tags=["usage"], responses=describe.ERRORS, default_response_class=Json)


@router.get("/v1/usage", summary="Requests and tokens", responses=describe.answers("A page of rows."))
async def usage(caller: Identified, gateway: Here, asked: Spending) -> Response:
    """By hour and day (UTC), in as many groups as are asked for; without any it is one row. Rows come in the order of
    their groups' names. Grouped by tag a request counts once for each of its tags."""
    return Json(await spending_page(gateway, caller, asked, usage_row))
