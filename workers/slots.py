"""The gate before an engine: as many requests side by side as it has slots, the urgent ones first.

While people ask, some slots are kept for them: a batch fills what they leave, so that nobody who waits for a first
token waits for the end of a batch's answer before.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable
from itertools import count
from math import inf
from types import TracebackType

from fabric.contracts.errors import EngineAway
from fabric.contracts.job import PRIORITIES, Priority

_PEOPLE, _BATCH = PRIORITIES.index("interactive"), PRIORITIES.index("batch")
#: Rank, number of the arrival, its time, whether it streams to a person, and what is set when it may enter.
_Waiter = tuple[int, int, float, bool, asyncio.Future[None]]
#: How long jobs wait at a gate without slots (its engine is away) before they go elsewhere. Longer saves trips
#: where engines come back soon, shorter saves time where others have room.
PATIENCE_S = 10.0


#: How long after the last interactive job its slots are kept. Longer is quicker for people who pause to read, shorter
#: lets batches have all of the engine sooner.
KEPT_S = 30.0
#: How long a batch job lets people's prompts be read before its own.
HELD_S = 2.0
#: One slot in so many is kept, but never the last one.
_KEPT_SHARE = 8
#: One in so many who enter is whoever has waited longest, of whatever class.
_TURNS = 8


def kept(slots: int) -> int:
    """Slots that batch jobs leave free while people ask."""
    return min(slots - 1, -(-slots // _KEPT_SHARE)) if slots > 1 else 0


class Gate:
    """A semaphore whose waiters are served by class, then in order of arrival; but one in eight is whoever has waited
    longest, so that no class starves here. One loop only.

    Batch jobs leave ``kept`` slots free until ``KEPT_S`` after the last interactive job. The number of slots may
    change at any time: with fewer, those who are in stay in; after ``PATIENCE_S`` with none, those who wait leave
    with ``EngineAway``.
    """

    def __init__(self, slots: int, clock: Callable[[], float] = time.monotonic, *, prompts_block: bool = False) -> None:
        """``prompts_block``: reading a prompt holds up all other slots, so no batch job enters while a person's stream
        hasn't begun, unless it has waited for ``HELD_S``."""
        self._slots = slots
        self._used = 0
        self._waiters: list[_Waiter] = []
        self._arrivals = count()
        self._admitted = 0
        self._clock = clock
        self._none_since = clock()
        self._asked = -inf  #: when an interactive job came or left last
        self._people = 0  #: interactive jobs inside
        self._unheard = 0  #: those of them that stream and haven't said anything yet
        self._prompts_block = prompts_block

    def slot(self, priority: Priority, *, streams: bool = False) -> _Slot:
        """``async with gate.slot("batch"): …`` holds one slot. A job that ``streams`` says when it has ``spoken``.

        Raises:
            EngineAway: there have been no slots for too long.
        """
        rank = PRIORITIES.index(priority)
        return _Slot(self, rank, streams and rank == _PEOPLE)

    def resize(self, slots: int) -> None:
        """To be called every second or so, also when nothing has changed."""
        self._slots = slots
        if slots > 0:
            self._none_since = self._clock()
        elif self._clock() - self._none_since >= PATIENCE_S:
            self._turn_away()
        self._admit()

    async def _enter(self, rank: int, streams: bool) -> None:
        if rank == _PEOPLE:
            self._asked = self._clock()
        now = self._clock()
        if self._open_to(rank, now):
            self._take(rank, streams)
            return
        waiter = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiters, (rank, next(self._arrivals), now, streams, waiter))
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._unheard -= streams
                self._leave(rank)  # the slot was handed over in the same turn
            raise

    def _take(self, rank: int, streams: bool) -> None:
        self._used += 1
        self._people += rank == _PEOPLE
        self._unheard += streams

    def _leave(self, rank: int) -> None:
        self._used -= 1
        if rank == _PEOPLE:
            self._people -= 1
            self._asked = self._clock()
        self._admit()

    def _heard(self) -> None:
        self._unheard -= 1
        self._admit()

    def _open_to(self, rank: int, since: float) -> bool:
        free = self._slots - self._used
        if rank != _BATCH:
            return free > 0
        now = self._clock()
        if self._unheard and self._prompts_block and now - since < HELD_S:
            return False
        # Those inside stand in the slots that are kept for them.
        return free > (max(0, kept(self._slots) - self._people) if now - self._asked < KEPT_S else 0)

    def _admit(self) -> None:
        while self._waiters:
            rank, arrival, since, streams, waiter = self._next()
            if waiter.done():
                self._drop(arrival)
            elif self._open_to(rank, since):
                self._drop(arrival)
                self._admitted += 1
                self._take(rank, streams)
                waiter.set_result(None)
            else:
                return

    def _next(self) -> _Waiter:
        if self._admitted % _TURNS == _TURNS - 1:
            longest = min(self._waiters, key=lambda waiter: waiter[1])
            if self._open_to(longest[0], longest[2]):
                return longest
        return self._waiters[0]

    def _drop(self, arrival: int) -> None:
        if self._waiters[0][1] == arrival:
            heapq.heappop(self._waiters)
        else:
            self._waiters = [waiter for waiter in self._waiters if waiter[1] != arrival]
            heapq.heapify(self._waiters)

    def _turn_away(self) -> None:
        waiters, self._waiters = self._waiters, []
        for *_, waiter in waiters:
            if not waiter.done():
                waiter.set_exception(EngineAway("The engine is away or takes nothing for now."))


class _Slot:
    def __init__(self, gate: Gate, rank: int, streams: bool) -> None:
        self._gate = gate
        self._rank = rank
        self._unheard = streams

    def spoken(self) -> None:
        """The first piece of the answer is there."""
        if self._unheard:
            self._unheard = False
            self._gate._heard()

    async def __aenter__(self) -> _Slot:
        await self._gate._enter(self._rank, self._unheard)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.spoken()
        self._gate._leave(self._rank)
