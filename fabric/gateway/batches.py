"""``/v1/batches``: files of requests. The batch service does the work; here it is asked for and shown."""

from __future__ import annotations

import contextlib
import time
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import Field, ValidationError
from sqlalchemy import Connection
from starlette.responses import Response

from fabric.batches.wake import wake
from fabric.batches.window import expires_ms
from fabric.contracts.batch_options import BatchOptions
from fabric.contracts.errors import InvalidRequest, NotFound, Unavailable
from fabric.contracts.ids import is_id, new_id
from fabric.contracts.job import Endpoint
from fabric.contracts.openai import Shape
from fabric.contracts.refusal import refusal
from fabric.contracts.request import json_object
from fabric.gateway import describe
from fabric.gateway.body import read_body
from fabric.gateway.caller import Identified
from fabric.gateway.gateway import Gateway, Here
from fabric.gateway.parameters import AfterPage, NoParameters, after_id, listed_after
from fabric.gateway.request_trace import request_trace
from fabric.gateway.responses import Json
from fabric.gateway.submission import fingerprint, idempotency_key
from fabric.ledger import batches, files
from fabric.ledger.batches import Batch, NewBatch, batch_object
from fabric.ledger.report import batch_report

router = APIRouter(tags=["batches"], responses=describe.ERRORS, default_response_class=Json)


class BatchRequest(Shape):
    """``POST /v1/batches``."""

    input_file_id: Annotated[str, Field(min_length=1, max_length=64)]
    endpoint: Endpoint
    completion_window: Annotated[str, Field(max_length=16)]
    metadata: (
        Annotated[
            dict[Annotated[str, Field(min_length=1, max_length=64)], Annotated[str, Field(max_length=512)]],
            Field(max_length=16),
        ]
        | None
    ) = None
    #: Of the batch as a whole: with any of them its lines are placed together, by a plan.
    fabric: BatchOptions | None = None


@router.post(
    "/v1/batches",
    summary="Create a batch",
    responses=describe.answers("The batch."),
    openapi_extra=describe.takes("BatchRequest", idempotent=True),
)
async def create(request: Request, caller: Identified, gateway: Here) -> Response:
    """Its lines are checked afterwards, one by one: a wrong line becomes a line of the error file."""
    key = idempotency_key(request.headers)
    raw = json_object(await read_body(request.receive, request.headers, gateway.settings.body_limit_bytes))
    try:
        asked = BatchRequest.model_validate(raw)
    except ValidationError as error:
        raise refusal(error, raw) from None
    now_ms = time.time_ns() // 1_000_000
    options = asked.fabric if asked.fabric is not None and asked.fabric.asked else None
    ends_ms = expires_ms(asked.completion_window, now_ms)
    if options is not None and options.deadline_s is not None:
        ends_ms = min(ends_ms, now_ms + int(options.deadline_s * 1000))
    new = NewBatch(
        id=new_id("batch"),
        tenant=caller.tenant,
        key_id=caller.key_id,
        endpoint=asked.endpoint,
        input_file_id=asked.input_file_id,
        completion_window=asked.completion_window,
        metadata=asked.metadata,
        created_ms=now_ms,
        expires_ms=ends_ms,
        idempotency_key=key or None,
        fingerprint=fingerprint(
            asked.model_dump(exclude=None if asked.fabric else {"fabric"}), gateway.settings.secrets
        )
        if key
        else None,
        permissions=caller.permissions.dump(),
        options=options.dump() if options is not None else None,
    )
    with request_trace(gateway.settings.tracer, "/v1/batches", request.headers) as trace:
        batch, created = await gateway.ledger.write(_create, new, gateway.settings.line_limit)
        if created:
            await _wake(gateway)
        if trace and created:
            trace.batch_id = batch.id
    return Json(batch_object(batch))


def _create(connection: Connection, new: NewBatch, line_limit: int) -> tuple[Batch, bool]:
    """One transaction: the input file stays while it is checked and the batch made."""
    file = None
    if is_id(new.input_file_id, "file"):
        with contextlib.suppress(NotFound):
            file = files.get(connection, new.tenant, new.input_file_id)
    if file is None:
        raise InvalidRequest("`input_file_id` names no file.", param="input_file_id", code="file_not_found")
    if file.purpose != "batch":
        raise InvalidRequest("`input_file_id` must name a file whose purpose is `batch`.", param="input_file_id")
    if file.lines is not None and file.lines > line_limit:
        raise InvalidRequest(
            f"The file has {file.lines:,} lines, a batch at most {line_limit:,}; split it.", param="input_file_id"
        )
    return batches.create(connection, new)


@router.get("/v1/batches", summary="List batches, newest first", responses=describe.answers("A page of batches."))
async def list_batches(caller: Identified, gateway: Here, page: AfterPage) -> Response:
    after = after_id(page.after, "batch")
    try:
        found, more = await gateway.ledger.read(batches.page, caller.tenant, limit=page.limit, after=after)
    except NotFound:
        raise InvalidRequest("`after` names no batch.", param="after") from None
    return Json(listed_after([batch_object(batch) for batch in found], has_more=more))


@router.get("/v1/batches/{batch_id}", summary="A batch", responses=describe.answers("The batch."))
async def show(batch_id: str, caller: Identified, gateway: Here, _: NoParameters) -> Response:
    _known(batch_id)
    return Json(batch_object(await gateway.ledger.read(batches.get, caller.tenant, batch_id)))


@router.get(
    "/v1/batches/{batch_id}/report",
    summary="What a batch took",
    responses=describe.answers("Lines, tokens, time, money."),
)
async def report(batch_id: str, caller: Identified, gateway: Here, _: NoParameters) -> Response:
    """Of the lines that have ended so far."""
    _known(batch_id)
    await gateway.ledger.read(batches.get, caller.tenant, batch_id)
    return Json(await gateway.ledger.read(batch_report, batch_id))


@router.post("/v1/batches/{batch_id}/cancel", summary="Stop a batch", responses=describe.answers("The batch."))
async def cancel(batch_id: str, caller: Identified, gateway: Here, _: NoParameters) -> Response:
    """What is finished stays; the rest ends as cancelled."""
    _known(batch_id)
    batch = await gateway.ledger.write(batches.cancel, caller.tenant, batch_id, time.time_ns() // 1_000_000)
    await _wake(gateway)
    return Json(batch_object(batch))


async def _wake(gateway: Gateway) -> None:
    """The batch is kept: a store that is away only makes it start later."""
    with contextlib.suppress(Unavailable):
        await gateway.ask(wake())


def _known(batch_id: str) -> None:
    if not is_id(batch_id, "batch"):
        raise NotFound(f"No batch found with id '{batch_id[:64]}'.", param="id")
