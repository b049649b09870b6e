"""JSON answers, and how an error is told: always in OpenAI's shape."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Send

from fabric.contracts.errors import ErrorInfo

Header = tuple[bytes, bytes]
JSON: Header = (b"content-type", b"application/json")
_DEFAULT_RETRY_AFTER_S = 1.0


class Json(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


class JobError(Exception):
    """A job ended without an answer: what its caller is told. Not a ``FabricError``: nothing failed here."""

    def __init__(self, info: ErrorInfo, headers: Iterable[Header] = ()) -> None:
        super().__init__(info.code)
        self.info = info
        self.headers = tuple(headers)


async def send_json(send: Send, status: int, body: bytes, headers: Iterable[Header] = ()) -> None:
    fixed = [JSON, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": [*fixed, *headers]})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, info: ErrorInfo, headers: Iterable[Header] = (), *, ended: bool = False) -> None:
    """``ended``: it is the end of a job, for which the fabric has tried all that it may."""
    await send_json(send, info.status, orjson.dumps(info.body()), [*headers, *_advice(info, ended)])


def _advice(info: ErrorInfo, ended: bool) -> Iterator[Header]:
    """When to come back; and for OpenAI's clients, which repeat 409, 429 and 5xx by themselves, when not to."""
    if info.status in (429, 503):
        seconds = math.ceil(info.retry_after_s or _DEFAULT_RETRY_AFTER_S)
        yield b"retry-after", b"%d" % seconds
    repeated = info.status in (409, 429) or info.status >= 500
    if repeated and (ended or not (info.retry or info.status == 429)):
        yield b"x-should-retry", b"false"
