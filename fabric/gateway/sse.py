"""Server-sent events on the wire."""

from __future__ import annotations

from starlette.types import Send

from fabric.gateway.responses import Header

HEADERS: list[Header] = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would wait for a full buffer
]
KEEP_ALIVE = b": keep-alive\n\n"


def frame(number: int, body: bytes) -> bytes:
    """One event that a reader can resume behind."""
    return b"id: %d\ndata: %b\n\n" % (number, body)


async def begin(send: Send, headers: list[Header]) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [*HEADERS, *headers]})


async def say(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})


async def end(send: Send, data: bytes = b"") -> None:
    await send({"type": "http.response.body", "body": data})
