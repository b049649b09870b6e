"""Which models of a worker are in memory: loaded when somebody asks for them, put away when others need the room.

    evicted ──a request comes, there is room──▶ loading ──▶ loaded ──idle, others need the room──▶ evicted

Who is put away: the one that has been idle for longest, never one with a request in flight. A model that is
always busy must let go, too, once it has had its turn: it takes no new request, finishes those it has, and gets
the next turn when its own requests wait. A turn is long enough that loading is a small part of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Literal

from fabric.contracts.errors import ConfigError, EngineAway, EngineUnavailable, FabricError
from fabric.fit.memory import available_memory

log = logging.getLogger(__name__)

State = Literal["loaded", "loading", "evicted"]

Action = Callable[[], Awaitable[None]]

#: The shortest turn, and how many times longer than its loading a turn is. Longer turns waste less on loading;
#: shorter ones let the other models' requests wait less.
TURN_S, TURN_LOADS = 5.0, 3.0


class Shelf:
    """The memory of one worker for its models. One loop only, but for ``memory`` and what a place says of itself."""

    def __init__(self, memory: int | None = None, *, turn_s: float = TURN_S) -> None:
        """``memory``: bytes for all models together. Default: what is free when it is asked for first."""
        self._memory = memory
        self._turn_s = turn_s
        self._places: list[Place] = []
        self._mover: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._lock = asyncio.Lock()  # held by whoever loads or puts away

    @property
    def memory(self) -> int:
        if self._memory is None:
            self._memory = available_memory()
        return self._memory

    def place(self, name: str, need: int, load: Action, unload: Action) -> Place:
        """For a model that takes ``need`` bytes; it isn't loaded yet. ``unload`` also ends what ``load`` has begun."""
        place = Place(self, name, min(need, self.memory), load, unload)
        self._places.append(place)
        return place

    async def warm(self, place: Place) -> None:
        """Loads it now, if there is room for it beside the others.

        Raises:
            FabricError: it can't be loaded.
        """
        async with self._lock:
            if self._missing(place) <= 0:
                await place.load()
            else:
                log.info("deployment %s is loaded when it is asked for: the others need the memory", place.name)

    async def remove(self, place: Place) -> None:
        """Nothing is in flight there any more."""
        if place in self._places:
            self._places.remove(place)
        if self._mover is not None:
            self._mover.cancel()
            await asyncio.gather(self._mover, return_exceptions=True)
        async with self._lock:
            await place.put_away()
        self.move()

    def move(self) -> None:
        """Something is wanted, or isn't any more, or has become idle."""
        self._changed.set()
        if (self._mover is None or self._mover.done()) and any(place.wanted for place in self._places):
            self._mover = asyncio.get_running_loop().create_task(self._move())

    async def _move(self) -> None:
        while any(place.wanted for place in self._places):
            async with self._lock:
                wanted = [place for place in self._places if place.wanted]
                try:
                    if wanted:
                        await self._serve(min(wanted, key=lambda place: place.wanted_since))
                finally:
                    for place in self._places:
                        place.open()

    async def _serve(self, place: Place) -> None:
        try:
            if await self._make_room(place):
                await place.load()
        except FabricError as error:
            log.error("deployment %s can't be loaded: %s", place.name, error.message)
            place.refuse(error)
        except Exception as error:  # the other models must go on taking turns
            log.exception("deployment %s can't be loaded", place.name)
            place.refuse(EngineUnavailable(f"The model can't be loaded ({type(error).__name__})."))

    async def _make_room(self, wanted: Place) -> bool:
        """Whether there is; not, when nobody wants it any more."""
        while wanted.wanted:
            if self._missing(wanted) <= 0:
                return True
            self._changed.clear()
            loaded = [place for place in self._places if place.state == "loaded"]
            if idle := [place for place in loaded if not place.in_use and self._turn_left_s(place) <= 0]:
                victim = min(idle, key=lambda place: place.used_at)
                log.info("deployment %s is put away: %s needs the memory", victim.name, wanted.name)
                await victim.put_away()
                continue
            self._close_enough(wanted, loaded)
            left_s = min((left for place in loaded if (left := self._turn_left_s(place)) > 0), default=None)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._changed.wait()
        return False

    def _close_enough(self, wanted: Place, loaded: list[Place]) -> None:
        """Of those whose turn is over so many take nothing new that there is room when they have finished."""
        missing = self._missing(wanted)
        for place in sorted(loaded, key=lambda place: place.loaded_at):
            if missing > 0 and self._turn_left_s(place) <= 0:
                place.closing = True
                missing -= place.need

    def _missing(self, place: Place) -> int:
        """Bytes that are missing to have it beside what is loaded."""
        return sum(other.need for other in self._places if other.state != "evicted") + place.need - self.memory

    def _turn_left_s(self, place: Place) -> float:
        return place.loaded_at + max(self._turn_s, TURN_LOADS * place.load_s) - time.monotonic()


class Place:
    """One model's, for its engine: ``used``, ``state`` and ``failed``; the rest is the shelf's."""

    def __init__(self, shelf: Shelf, name: str, need: int, load: Action, unload: Action) -> None:
        self.name = name
        self.need = need
        self.state: State = "evicted"
        self.failed = False  #: it can't be loaded as it is configured
        self.closing = False  #: it takes nothing new, so that it can be put away
        self.in_use = 0
        self.used_at = self.loaded_at = self.wanted_since = self.load_s = 0.0
        self._shelf = shelf
        self._load = load
        self._unload = unload
        self._waiters: set[asyncio.Future[None]] = set()

    @contextlib.asynccontextmanager
    async def used(self) -> AsyncIterator[None]:
        """The model is in memory, and stays there.

        Raises:
            FabricError: it can't be loaded.
        """
        while self.state != "loaded" or self.closing:
            await self._wait()
        self.in_use += 1
        try:
            yield
        finally:
            self.in_use -= 1
            self.used_at = time.monotonic()
            if not self.in_use:
                self._shelf.move()

    @property
    def wanted(self) -> bool:
        return bool(self._waiters) and self.state == "evicted"

    async def load(self) -> None:
        started = time.monotonic()
        self.state = "loading"
        try:
            await self._load()
        except BaseException as error:
            self.state = "evicted"
            self.failed = isinstance(error, ConfigError)
            raise
        self.state = "loaded"
        self.used_at = self.loaded_at = time.monotonic()
        self.load_s = self.loaded_at - started

    async def put_away(self) -> None:
        self.state = "evicted"
        await self._unload()

    def open(self) -> None:
        """Lets in whoever waits, if it is loaded."""
        self.closing = False
        if self.state == "loaded":
            for waiter in self._waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def refuse(self, error: FabricError) -> None:
        """Tells whoever waits."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(error)

    async def _wait(self) -> None:
        if self.failed:
            raise EngineAway(f"The model of deployment {self.name!r} can't be loaded; the worker's log says why.")
        if not self._waiters:
            self.wanted_since = time.monotonic()
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        self._shelf.move()
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)
            self._shelf.move()
