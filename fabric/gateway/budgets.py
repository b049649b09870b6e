"""``GET /v1/budgets``: what budgets there are, and what is left of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from fabric.contracts.budget import NANO, Budget, window_at
from fabric.gateway import describe
from fabric.gateway.caller import Caller, Identified
from fabric.gateway.gateway import Gateway, Here
from fabric.gateway.parameters import NoParameters, listed
from fabric.gateway.responses import Json
from fabric.store import budgets
from fabric.store.budgets import Balance

router = APIRouter(tags=["usage"], responses=describe.ERRORS, default_response_class=Json)


@router.get("/v1/budgets", summary="Budgets, and what is left", responses=describe.answers("All of them."))
async def list_budgets(caller: Identified, gateway: Here, _: NoParameters) -> Response:
    """Those of the caller's tenant and key; all of them for `admin`, and where there are no keys."""
    own = caller.permissions.budgets(caller.key_id)
    shown = [budget for budget in (*gateway.catalog.budgets, *own) if _may_see(caller, budget)]
    return Json(listed([_object(budget, balance) for budget, balance in await balances(gateway, shown)]))


async def balances(gateway: Gateway, asked: Sequence[Budget]) -> list[tuple[Budget, Balance]]:
    """As they are in the windows of now. Raises ``Unavailable``."""
    if not asked:
        return []
    now_ms = time.time_ns() // 1_000_000
    names = [(budget.name, window_at(budget.window, now_ms).name) for budget in asked]
    found = await gateway.ask(budgets.balances(names))
    return [(budget, balance or Balance()) for budget, balance in zip(asked, found, strict=True)]


def _may_see(caller: Caller, budget: Budget) -> bool:
    if caller.key_id is None or "admin" in caller.scopes:
        return True
    return budget.tenant == caller.tenant or budget.key == caller.key_id


def _object(budget: Budget, balance: Balance) -> dict[str, Any]:
    window = window_at(budget.window, time.time_ns() // 1_000_000)
    amounts = {"limit": budget.limit, "spent": balance.spent, "reserved": balance.reserved}
    amounts["left"] = max(0, budget.limit - balance.spent - balance.reserved)
    return {
        "object": "budget",
        "name": budget.name,
        "tenant": budget.tenant,
        "key": budget.key,
        "tag": budget.tag,
        "hard": budget.hard,
        "window": budget.window,
        "window_start_ms": window.start_ms,
        "window_end_ms": window.end_ms,
        "unit": budget.unit,
        **{f"{name}_{budget.unit}": _shown(amount, budget) for name, amount in amounts.items()},
    }


def _shown(amount: int, budget: Budget) -> float | int:
    return amount if budget.unit == "tokens" else amount / NANO
