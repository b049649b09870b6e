"""``/v1/files``: inputs and outputs of batches."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from urllib.parse import quote

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from fabric.contracts.errors import InvalidRequest, NotFound, TooLarge
from fabric.contracts.ids import is_id, new_id
from fabric.gateway import describe
from fabric.gateway.caller import Caller, Identified
from fabric.gateway.gateway import Gateway, Here
from fabric.gateway.parameters import FilesPage, NoParameters, after_id, listed_after
from fabric.gateway.responses import Json
from fabric.gateway.upload import Upload
from fabric.ledger import files
from fabric.ledger.files import File, file_object

router = APIRouter(tags=["files"], responses=describe.ERRORS, default_response_class=Json)


@router.post(
    "/v1/files",
    summary="Upload a batch's input",
    responses=describe.answers("The file."),
    openapi_extra={
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": describe.ref("FileUpload")}}}
    },
)
async def upload(request: Request, caller: Identified, gateway: Here) -> Response:
    """One JSON object a line, as OpenAI's Batch API takes them. The bytes go to disk as they come."""
    gateway.room.check()
    limits = gateway.settings
    form = Upload(request.receive, request.headers, limit_bytes=limits.file_limit_bytes)
    file_id = new_id("file")
    stored = await gateway.storage.save(file_id, form, limit_bytes=limits.file_limit_bytes)
    file = File(
        id=file_id,
        tenant=caller.tenant,
        purpose="batch",
        filename=form.filename,
        bytes=stored.bytes,
        lines=stored.lines,
        path=stored.path,
        created_ms=time.time_ns() // 1_000_000,
    )
    try:
        if not stored.lines:
            raise InvalidRequest("The file is empty.", param="file", code="empty_file")
        if stored.lines > limits.line_limit:
            raise TooLarge(
                f"The file has {stored.lines:,} lines, a batch at most {limits.line_limit:,}; split it.", param="file"
            )
        await gateway.ledger.write(files.create, file)
    except Exception:
        await asyncio.to_thread(gateway.storage.remove, stored.path)
        raise
    return Json(file_object(file))


@router.get("/v1/files", summary="List files", responses=describe.answers("A page of files."))
async def list_files(caller: Identified, gateway: Here, page: FilesPage) -> Response:
    after = after_id(page.after, "file")
    try:
        found, more = await gateway.ledger.read(
            files.page,
            caller.tenant,
            limit=page.limit,
            after=after,
            purpose=page.purpose,
            oldest_first=page.order == "asc",
        )
    except NotFound:
        raise InvalidRequest("`after` names no file.", param="after") from None
    return Json(listed_after([file_object(file) for file in found], has_more=more))


@router.get("/v1/files/{file_id}", summary="A file", responses=describe.answers("The file."))
async def show(file_id: str, caller: Identified, gateway: Here, _: NoParameters) -> Response:
    return Json(file_object(await _file(gateway, caller, file_id)))


@router.get(
    "/v1/files/{file_id}/content",
    summary="A file's bytes",
    responses=describe.answers("The bytes.", "application/octet-stream"),
)
async def content(file_id: str, caller: Identified, gateway: Here, _: NoParameters) -> Response:
    file = await _file(gateway, caller, file_id)
    pieces = gateway.storage.read(file.path)
    first = await anext(pieces, b"")  # before the status is sent: the bytes may be gone

    async def every() -> AsyncIterator[bytes]:
        yield first
        async for piece in pieces:
            yield piece

    headers = {
        "content-length": str(file.bytes),
        "content-disposition": f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}",
        "x-content-type-options": "nosniff",
    }
    return StreamingResponse(every(), headers=headers, media_type="application/octet-stream")


@router.delete("/v1/files/{file_id}", summary="Delete a file", responses=describe.answers("What was deleted."))
async def delete(file_id: str, caller: Identified, gateway: Here, _: NoParameters) -> Response:
    """Not while a batch that hasn't ended reads it."""
    _known(file_id)
    file = await gateway.ledger.write(files.delete, caller.tenant, file_id, time.time_ns() // 1_000_000)
    await asyncio.to_thread(gateway.storage.remove, file.path)
    return Json({"id": file.id, "object": "file", "deleted": True})


async def _file(gateway: Gateway, caller: Caller, file_id: str) -> File:
    _known(file_id)
    return await gateway.ledger.read(files.get, caller.tenant, file_id)


def _known(file_id: str) -> None:
    if not is_id(file_id, "file"):
        raise NotFound(f"No such File object: {file_id[:64]}", param="id")
