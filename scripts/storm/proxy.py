"""TCP proxies between any two processes, each of which can be cut, delayed or turned into a black hole."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Mode = Literal["open", "cut", "delay", "black-hole"]
#: Where to: a port on loopback, or a unix socket.
Target = int | Path
_BYTES = 65_536


@dataclass(eq=False)
class Link:
    """One proxied way. ``cut``: connections end, and new ones end at once. ``delay``: every piece is late.
    ``black-hole``: nothing gets through in either direction and nobody is told; what was sent comes later."""

    name: str
    target: Target
    port: int = 0
    mode: Mode = "open"
    delay_s: float = 0.3
    _server: asyncio.Server | None = None
    _open: asyncio.Event = field(default_factory=asyncio.Event)
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def listen(self) -> None:
        """On a free port of loopback."""
        self._open.set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def turn(self, mode: Mode) -> None:
        self.mode = mode
        if mode == "black-hole":
            self._open.clear()
        else:
            self._open.set()
        if mode == "cut":
            for writer in self._writers:
                writer.transport.abort()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self.turn("cut")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        far: asyncio.StreamWriter | None = None
        try:
            await self._open.wait()
            if self.mode == "cut":
                return
            far_reader, far = await self._connect()
            self._writers.add(far)
            ways = [asyncio.create_task(self._pass(*way)) for way in ((reader, far), (far_reader, writer))]
            # A connection that is half closed is of no use to any protocol that goes through here.
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for one in (writer, far):
                if one is not None:
                    self._writers.discard(one)
                    one.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self.target, Path):
            return await asyncio.open_unix_connection(str(self.target))
        return await asyncio.open_connection("127.0.0.1", self.target)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(_BYTES):
                if self.mode == "delay":
                    await asyncio.sleep(self.delay_s)
                await self._open.wait()
                writer.write(data)
                await writer.drain()
