"""The gate before an engine: as many requests side by side as it has slots, the urgent ones first."""

from __future__ import annotations

import asyncio
import heapq
from itertools import count
from types import TracebackType

from fabric.contracts.job import PRIORITIES, Priority


class Gate:
    """A semaphore whose waiters are served by class, then in order of arrival. One loop only.

    The number of slots may change at any time: with fewer, those who are in stay in.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._used = 0
        self._waiters: list[tuple[int, int, asyncio.Future[None]]] = []
        self._arrivals = count()

    def slot(self, priority: Priority) -> _Slot:
        """``async with gate.slot("batch"): …`` holds one slot."""
        return _Slot(self, PRIORITIES.index(priority))

    def resize(self, slots: int) -> None:
        self._slots = slots
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
            if waiter.done() and not waiter.cancelled():
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
