"""Who may use llama.cpp's slots next: first come, first served, several at a time.

Without it llama.cpp keeps what finds no slot in a queue of its own, where a request for four answers
can wait for ever while requests for one take each slot that comes free, and where nothing can be called off.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Seats:
    """One loop only."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def taken(self, count: int) -> AsyncIterator[None]:
        """``async with seats.taken(2): …``. No more than there are."""
        await self._take(count)
        try:
            yield
        finally:
            self._free += count
            self._seat()

    async def _take(self, count: int) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append((count, waiter))
        self._seat()
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._free += count  # it had been given in the same turn
            self._seat()
            raise

    def _seat(self) -> None:
        """Lets in whoever is first in line, as long as there is room for him."""
        while self._waiters:
            count, waiter = self._waiters[0]
            if not waiter.done():
                if count > self._free:
                    return
                self._free -= count
                waiter.set_result(None)
            self._waiters.popleft()
