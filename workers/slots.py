"""The gate before an engine: as many requests side by side as it has slots, the urgent ones first."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable
from itertools import count
from types import TracebackType

from fabric.contracts.errors import EngineAway
from fabric.contracts.job import PRIORITIES, Priority

#: How long jobs wait at a gate without slots (its engine is away) before they go elsewhere. Longer saves trips
#: where engines come back soon, shorter saves time where others have room.
PATIENCE_S = 10.0


class Gate:
    """A semaphore whose waiters are served by class, then in order of arrival. One loop only.

    The number of slots may change at any time: with fewer, those who are in stay in; after ``PATIENCE_S``
    with none, those who wait leave with ``EngineAway``.
    """

    def __init__(self, slots: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._slots = slots
        self._used = 0
        self._waiters: list[tuple[int, int, asyncio.Future[None]]] = []
        self._arrivals = count()
        self._clock = clock
        self._none_since = clock()

    def slot(self, priority: Priority) -> _Slot:
        """``async with gate.slot("batch"): …`` holds one slot.

        Raises:
            EngineAway: there have been no slots for too long.
        """
        return _Slot(self, PRIORITIES.index(priority))

    def resize(self, slots: int) -> None:
        """To be called every second or so, also when nothing has changed."""
        self._slots = slots
        if slots > 0:
            self._none_since = self._clock()
        elif self._clock() - self._none_since >= PATIENCE_S:
            self._turn_away()
        self._admit()

    async def _enter(self, rank: int) -> None:
        if self._used < self._slots:
            self._used += 1
            return
        waiter = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiters, (rank, next(self._arrivals), waiter))
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._leave()  # the slot was handed over in the same turn
            raise

    def _leave(self) -> None:
        self._used -= 1
        self._admit()

    def _admit(self) -> None:
        while self._waiters and self._used < self._slots:
            _, _, waiter = heapq.heappop(self._waiters)
            if not waiter.done():
                self._used += 1
                waiter.set_result(None)

    def _turn_away(self) -> None:
        waiters, self._waiters = self._waiters, []
        for _, _, waiter in waiters:
            if not waiter.done():
                waiter.set_exception(EngineAway("The engine is away or takes nothing for now."))


class _Slot:
    def __init__(self, gate: Gate, rank: int) -> None:
        self._gate = gate
        self._rank = rank

    async def __aenter__(self) -> None:
        await self._gate._enter(self._rank)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._gate._leave()
