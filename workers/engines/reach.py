"""Whether a server can be reached: told by the requests that went there, and looked at while it can't."""

from __future__ import annotations

import asyncio
import contextlib
from urllib.parse import urlsplit

#: The first look comes at once: one connection that failed among many says little.
_WAIT_S, _WAIT_CAP_S = 0.5, 15.0
_LOOK_S = 5.0
_PORTS = {"http": 80, "https": 443}


class Reach:
    """Looks until a connection can be made: no job is spent on finding out. One loop only, but for ``there``."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self._host = address.hostname or ""
        self._port = address.port or _PORTS.get(address.scheme, 443)
        self._looking: asyncio.Task[None] | None = None
        self.there = True

    def found(self) -> None:
        """A request got an answer."""
        self.there = True

    def lost(self) -> None:
        """A connection couldn't be made."""
        self.there = False
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._look())

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    async def _look(self) -> None:
        wait_s = _WAIT_S
        while not self.there:
            try:
                async with asyncio.timeout(_LOOK_S):
                    _, writer = await asyncio.open_connection(self._host, self._port)
            except (OSError, UnicodeError):  # a time-out is an OSError, too
                await asyncio.sleep(wait_s)
                wait_s = min(_WAIT_CAP_S, 2 * wait_s)
                continue
            self.there = True
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
