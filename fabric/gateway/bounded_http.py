"""HTTP connections whose requests' heads are bounded, in bytes and in time: uvicorn's own parser takes heads of any
length and waits for their ends for ever, before anybody has shown a key."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: Of the request line and all headers, counted from the second piece of them on. A cookie or a token has some KB.
HEAD_BYTES = 65_536
#: From the connection, or the first byte of a later request, to the end of the head.
HEAD_S = 30.0


class BoundedHttp(HttpToolsProtocol):
    """For ``uvicorn.Config(http=…)``."""

    _head_bytes = 0
    _in_head = True
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_done()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._await_head()

    def on_headers_complete(self) -> None:
        self._head_done()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self._refuse("The head of the request is too large.")

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._in_head, self._head_bytes = True, 0
            self._head_timer = asyncio.get_running_loop().call_later(
                HEAD_S, self._refuse, "The head of the request is too long in coming."
            )

    def _head_done(self) -> None:
        self._in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, why: str) -> None:
        self._head_done()
        if not self.transport.is_closing():
            self.send_400_response(why)
