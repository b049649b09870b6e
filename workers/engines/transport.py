"""An httpx transport for hundreds of requests in flight over kept connections.

httpx's own transport looks at every connection it holds for every request: with 512 in flight that
is most of a core (``tests/workers/engines/measure_http.py`` measures both). This one keeps a stack
of idle connections. It speaks HTTP/1.1 without proxies and compression; for a proxy, httpx's own
transport takes its place (``workers.engines.http``).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from functools import partial

import httpx

from workers.engines.connection import Connection, Stale

#: A kept connection is dropped when it has been idle for this long: just before servers drop it themselves (uvicorn,
#: and with it vLLM, after 5 s), and long before load balancers forget it silently. Longer saves handshakes; a
#: request that meets a connection that is being closed costs an attempt.
_IDLE_S = 4.0

Place = tuple[str, str, int]


class KeepAliveTransport(httpx.AsyncBaseTransport):
    """Reads ``connect`` of a request's ``timeout`` extension. All other time-outs are the caller's: he cancels.

    Closing an answer before its end closes the connection.
    """

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        """``tls`` is needed for https addresses only."""
        self._tls = tls
        self._idle: dict[Place, list[Connection]] = {}
        self._closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """
        Raises:
            httpx.ConnectError: no such host, nobody listens there, or no TLS.
            httpx.ConnectTimeout: no connection in time.
            httpx.RemoteProtocolError: the connection was closed without an answer, or what came isn't HTTP.
        """
        message = _message(request)
        place = _place(request.url)
        # On a new connection nobody can say afterwards that it was closed before the request came.
        kept = None if request.extensions.get("once") else self._take(place)
        if kept is not None:
            try:
                return await self._ask(kept, place, message)
            except Stale:
                pass  # closed while idle, not a byte of an answer: as if it had never been kept
        return await self._ask(await self._connect(request, place), place, message)

    async def aclose(self) -> None:
        self._closed = True
        for connections in self._idle.values():
            for connection in [*connections]:
                connection.abort()

    @property
    def idle(self) -> int:
        """Connections that are kept for the next requests."""
        return sum(map(len, self._idle.values()))

    async def _ask(self, connection: Connection, place: Place, message: bytes) -> httpx.Response:
        try:
            await connection.ask(message)
        except BaseException:
            connection.abort()
            raise
        body = _Body(connection, partial(self._release, place))
        return httpx.Response(connection.status, headers=connection.headers, stream=body)

    def _take(self, place: Place) -> Connection | None:
        """The connection that was used last, so that a quiet time lets the others go."""
        idle = self._idle.get(place)
        while idle:
            connection = idle.pop()
            if not connection.closed and asyncio.get_running_loop().time() - connection.idle_since < _IDLE_S:
                return connection
            connection.abort()
        return None

    def _release(self, place: Place, connection: Connection) -> None:
        if self._closed or not connection.reusable:
            connection.abort()
            return
        connection.idle_since = asyncio.get_running_loop().time()
        self._idle.setdefault(place, []).append(connection)

    def _lost(self, place: Place, connection: Connection) -> None:
        idle = self._idle.get(place, [])
        if connection in idle:
            idle.remove(connection)

    async def _connect(self, request: httpx.Request, place: Place) -> Connection:
        scheme, host, port = place
        tls = self._tls if scheme == "https" else None
        try:
            async with asyncio.timeout(request.extensions.get("timeout", {}).get("connect")):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: Connection(partial(self._lost, place)), host, port, ssl=tls
                )
        except TimeoutError as error:
            raise httpx.ConnectTimeout("no connection in time", request=request) from error
        except (OSError, UnicodeError) as error:  # ssl.SSLError and socket.gaierror are OSErrors
            raise httpx.ConnectError(str(error), request=request) from error
        return connection


class _Body(httpx.AsyncByteStream):
    """An iterator, not a generator: nothing of it is left to be closed when its reader leaves early."""

    def __init__(self, connection: Connection, release: partial[None]) -> None:
        self._connection = connection
        self._release: partial[None] | None = release

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        data = await self._connection.read()
        if not data:
            raise StopAsyncIteration
        return data

    async def aclose(self) -> None:
        release, self._release = self._release, None
        if release is not None:
            release(self._connection)


def _place(url: httpx.URL) -> Place:
    return url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80)


def _message(request: httpx.Request) -> bytes:
    lines = [f"{request.method} ".encode(), request.url.raw_path, b" HTTP/1.1\r\n"]
    for name, value in request.headers.raw:
        lines += (name, b": ", value, b"\r\n")
    return b"".join((*lines, b"\r\n", request.content))
