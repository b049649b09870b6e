"""One HTTP/1.1 connection to an engine's or provider's server: a request, its answer, the next request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import cast

import httptools
import httpx

#: Bytes that wait for their reader before the connection stops listening. Smaller makes the server feel
#: a slow reader sooner, larger saves wake-ups.
_HIGH_WATER = 256 * 1024
#: Bytes of an answer's head: no API sends more.
_HEAD_LIMIT = 64 * 1024
_NO_BODY = frozenset((204, 304))
#: A kept connection that is closed this soon after a request had been closed before it. Later than
#: that, the server may have begun to work on the request.
_STALE_S = 1.0


class Stale(httpx.RemoteProtocolError):
    """The server closed a kept connection before it answered anything: another one may do."""


class Connection(asyncio.Protocol):
    """At most one request at a time. ``lost`` is called once, when the connection is gone."""

    def __init__(self, lost: Callable[[Connection], None]) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.idle_since = 0.0
        self.closed = False
        self._lost = lost
        self._waiter: asyncio.Future[None] | None = None
        self._fault: str | None = None
        self._requests = 0
        self._begin()

    def _begin(self) -> None:
        """Ready for an answer's first byte."""
        self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []
        self._waiting_bytes = 0
        self._head_bytes = 0
        self._answering = self._has_head = self._framed = False
        self._complete = self._keep_alive = self._paused = False

    async def ask(self, message: bytes) -> None:
        """Sends a whole request and waits for the head of its answer.

        Raises:
            Stale: the connection had been closed while it was kept.
            httpx.RemoteProtocolError: it was closed without an answer, or what came isn't HTTP.
        """
        if self._requests:
            self._begin()
        self._requests += 1
        sent = time.monotonic()
        self._transport.write(message)
        while not self._has_head:
            if self.closed:
                if self._requests > 1 and not self._answering and time.monotonic() - sent < _STALE_S:
                    raise Stale("the connection was closed while it was kept")
                raise httpx.RemoteProtocolError(self._fault or "the connection was closed without an answer")
            await self._news()

    async def read(self) -> bytes:
        """What has come of the body since the last call; empty at its end.

        Raises:
            httpx.ReadError: the connection broke before the body's end.
            httpx.RemoteProtocolError: what came isn't HTTP.
        """
        while not self._parts:
            if self._complete:
                return b""
            if self.closed:
                if self._fault:
                    raise httpx.RemoteProtocolError(self._fault)
                if self._framed:
                    raise httpx.ReadError("the connection was closed in the middle of the answer")
                return b""  # an answer without a length ends with its connection
            await self._news()
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts = []
        self._waiting_bytes = 0
        if self._paused and not self.closed:
            self._paused = False
            self._transport.resume_reading()
        return body

    @property
    def reusable(self) -> bool:
        return self._complete and self._keep_alive and not self._parts and not self.closed

    def abort(self) -> None:
        """Closes at once: the server learns that nobody waits for the rest."""
        if not self.closed:
            self._transport.abort()

    async def _news(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    # What the loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._complete or not self._requests:  # nobody asked
            self.abort()
            return
        self._answering = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fault = self._fault or "the answer isn't HTTP/1.1"
            self.abort()
        if self._waiting_bytes > _HIGH_WATER and not self._paused and not self.closed:
            self._paused = True
            self._transport.pause_reading()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._lost(self)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # What the parser calls.

    def on_message_begin(self) -> None:
        if self._complete:
            self._keep_alive = False
            raise ValueError("more than one answer")
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > _HEAD_LIMIT:
            self._fault = "the answer's head is too long"
            raise ValueError(self._fault)
        self._framed = self._framed or name in (b"content-length", b"transfer-encoding")
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._has_head = self.status >= 200  # 1xx: the real answer follows
        self._framed = self._framed or self.status in _NO_BODY

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)
        self._waiting_bytes += len(body)

    def on_message_complete(self) -> None:
        self._complete = self._has_head
        self._keep_alive = self._parser.should_keep_alive()  # the parser forgets it after this
