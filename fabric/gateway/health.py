"""``/health/live``, ``/health/ready`` and ``/metrics``."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable

from fastapi import APIRouter
from starlette.responses import Response

from fabric.contracts.catalog import TIERS
from fabric.contracts.errors import Unavailable
from fabric.gateway import describe, zeros
from fabric.gateway.budgets import balances
from fabric.gateway.gateway import Gateway, Here
from fabric.gateway.job_object import MESSAGES, parked_queue
from fabric.gateway.metrics import CONTENT_TYPE, Snapshot
from fabric.gateway.queueing import backlog_s
from fabric.gateway.responses import Json
from fabric.store import bad_messages, budgets, counts, reads, transitions

router = APIRouter(tags=["operations"], default_response_class=Json)

_CHECK_S = 1.5
#: Parked jobs that are counted by queue; beyond it the newest are a fair sample.
_COUNTED = 10_000
_CHUNK = 500


@router.get(
    "/health/live",
    summary="Whether the process answers",
    responses=describe.answers("It does."),
    openapi_extra=describe.FOR_ALL,
)
async def live() -> Response:
    return Json({"status": "ok"})


@router.get(
    "/health/ready",
    summary="Whether requests can be taken",
    responses={**describe.answers("They can."), **describe.answers("They can't: `parts` says why.", status=503)},
    openapi_extra=describe.FOR_ALL,
)
async def ready(gateway: Here) -> Response:
    """The store answers, its events arrive, the ledger answers, and no scheduler says that the broker is away."""
    store, ledger = await asyncio.gather(_works(gateway.ask(reads.ping())), _works(gateway.ledger.ping()))
    up = {"store": store, "events": gateway.listener.subscribed, "ledger": ledger, "broker": not gateway.broker.away}
    parts = {name: "ok" if works else "away" for name, works in up.items()}
    if all(up.values()):
        return Json({"status": "ok", "parts": parts})
    away = ", ".join(name for name, works in up.items() if not works)
    refused = Unavailable(f"Not ready: {away} away.").info
    return Json({"status": "unavailable", "parts": parts, **refused.body()}, 503, {"retry-after": "1"})


async def _works(check: Awaitable[object]) -> bool:
    try:
        async with asyncio.timeout(_CHECK_S):
            await check
    except (Unavailable, TimeoutError):
        return False
    return True


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    responses=describe.answers("Text.", "text/plain") | describe.ERRORS,
)
async def metrics(gateway: Here) -> Response:
    try:
        snapshot = await _snapshot(gateway)
    except Unavailable:
        snapshot = None
    return Response(gateway.metrics.exposition(snapshot), headers={"content-type": CONTENT_TYPE})


async def _snapshot(gateway: Gateway) -> Snapshot:
    room, fenced, pace_s, blocks, fallbacks, totals = await asyncio.gather(
        gateway.ask(transitions.room()),
        gateway.ask(reads.fenced_count()),
        gateway.ask(reads.pace()),
        gateway.ask(reads.label_blocks()),
        gateway.ask(reads.fallbacks()),
        gateway.ask(counts.totals()),
    )
    catalog = gateway.catalog
    tiers = [tier for tier in TIERS if catalog.of_tier(tier)]
    waits = {tier: backlog_s(tier, catalog, room, pace_s) for tier in tiers}
    hedges = await gateway.ask(reads.hedges())
    dead = Counter({f"fabric.{place.tier}.{place.name}": 0 for place in catalog.by_deployment.values()})
    dead.update({f"fabric.{tier}.dead": room.dead.get(tier, 0) for tier in TIERS if tier in tiers or tier in room.dead})
    dead.update(await _parked(gateway))
    dead[MESSAGES] = await gateway.ask(bad_messages.kept_count())
    used = {
        budget.name: balance.taken / budget.limit
        for budget, balance in await balances(gateway, catalog.budgets)
        if budget.limit
    }
    warned = await gateway.ask(budgets.warnings())
    set_aside = await gateway.ask(bad_messages.count())
    return Snapshot(
        room,
        dead,
        fenced,
        waits,
        blocks,
        zeros.fallbacks(catalog) | fallbacks,
        hedges,
        sorted(catalog.by_deployment),
        used,
        warned,
        {**zeros.of_jobs(catalog), **totals},
        set_aside,
    )


async def _parked(gateway: Gateway) -> Counter[str]:
    parked: Counter[str] = Counter()
    for offset in range(0, _COUNTED, _CHUNK):
        ids = await gateway.ask(reads.parked(limit=_CHUNK, offset=offset))
        records = await gateway.ask_all(map(reads.summary, ids)) if ids else []
        parked.update(parked_queue(record) or "none" for record in records if record)
        if len(ids) < _CHUNK:
            break
    return parked
