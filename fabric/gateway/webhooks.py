"""``/v1/webhook-deliveries``: which events reached whom, and sending those again that didn't."""

from __future__ import annotations

import re
import time
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.responses import Response

from fabric.gateway import describe
from fabric.gateway.caller import Identified
from fabric.gateway.gateway import Here
from fabric.gateway.parameters import NoParameters, PageParameters, bad_cursor, listed
from fabric.gateway.responses import Json
from fabric.ledger import deliveries
from fabric.ledger.deliveries import Delivery, State

router = APIRouter(tags=["webhooks"], responses=describe.ERRORS, default_response_class=Json)

_CURSOR = re.compile(r"([0-9]{1,15}):([A-Za-z0-9._:-]{1,160})")


class _Filters(PageParameters):
    state: Annotated[State | None, Field(description="Only those.")] = None
    webhook: Annotated[str | None, Field(max_length=64, description="Only this webhook's.")] = None


Filters = Annotated[_Filters, Query()]


@router.get(
    "/v1/webhook-deliveries",
    summary="List deliveries of webhooks, newest first",
    responses=describe.answers("A page of them."),
)
async def list_deliveries(caller: Identified, gateway: Here, asked: Filters) -> Response:
    """For `admin`. Those that have ended stay for a week."""
    before = None
    if asked.cursor is not None:
        found = _CURSOR.fullmatch(asked.cursor)
        if found is None:
            raise bad_cursor()
        before = (int(found[1]), found[2])
    page = await gateway.ledger.read(
        deliveries.page, state=asked.state, webhook=asked.webhook, before=before, limit=asked.limit + 1
    )
    shown, more = page[: asked.limit], len(page) > asked.limit
    return Json(listed([_object(one) for one in shown], f"{shown[-1].created_ms}:{shown[-1].id}" if more else None))


@router.post(
    "/v1/webhook-deliveries/{delivery_id}/replay",
    summary="Send an event again",
    responses=describe.answers("The delivery, which waits now."),
)
async def replay_delivery(delivery_id: str, caller: Identified, gateway: Here, _: NoParameters) -> Response:
    """For `admin`. The event keeps its id: a receiver that has had it knows it again."""
    now_ms = time.time_ns() // 1_000_000
    again = await gateway.ledger.write(deliveries.replay, delivery_id[:200], now_ms)
    gateway.trail.note("webhook.replayed", caller.actor, tenant=caller.tenant, subject=delivery_id)
    return Json(_object(again))


def _object(delivery: Delivery) -> dict[str, Any]:
    return {
        "id": delivery.id,
        "object": "webhook_delivery",
        "webhook": delivery.webhook,
        "event_id": delivery.event_id,
        "type": delivery.type,
        "tenant": delivery.tenant,
        "subject": delivery.subject,
        "state": delivery.state,
        "tries": delivery.tries,
        "created_ms": delivery.created_ms,
        "next_ms": delivery.next_ms if delivery.state == "waiting" else None,
        "ended_ms": delivery.ended_ms,
        "last_status": delivery.last_status,
        "last_error": delivery.last_error,
    }
