"""Reads request bodies, with a limit that holds before anything is parsed."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import Receive

from fabric.contracts.errors import FabricError, TooLarge


class UnsupportedMediaType(FabricError):
    """The body isn't of the kind that this route takes."""

    status, type, code, fault = 415, "invalid_request_error", "unsupported_media_type", "caller"


class ClientGone(Exception):
    """The client closed the connection; there is nobody to answer."""


async def read_body(receive: Receive, headers: Headers, limit: int) -> bytes:
    """The whole body of a JSON request.

    Raises:
        UnsupportedMediaType: it isn't declared as JSON.
        TooLarge: over ``limit`` bytes, declared or sent.
        ClientGone: the client left before the end.
    """
    content_type = headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaType("Send the body as JSON, with `Content-Type: application/json`.")
    declared = headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise _too_large(limit)
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The body is over {limit // 1_000_000} MB. Send less, or use several requests.")
