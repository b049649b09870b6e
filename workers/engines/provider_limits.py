"""A provider's rate limit, obeyed by all requests to one deployment.

Providers tell of it in three ways: ``Retry-After`` on a refusal, what is left of the current window on
every answer (both in ``limit_headers``), and a bare 429. ``RateGate`` is where requests wait.

Workers of one deployment share one account. What they know of it together is a ``Board``: ``LocalBoard``
is for one process, ``workers.shared_limits`` has the one on Redis.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from workers.engines.limit_headers import Window, retry_after_s, tightest, windows

Clock = Callable[[], float]

#: Pauses after refusals that don't say how long: doubled each time, up to the cap.
_BARE_S = 1.0
_BARE_CAP_S = 30.0
#: While a limit is probed, the next requests go this long after the last ones. Refusals come at once.
_GROUP_S = 1.0
#: Requests that go ahead at a limit that others use too, before anything is known of it.
_FIRST = 16


class Board(Protocol):
    """What is known of one limit. One loop only, but for ``wait_s``, which is read by other threads, too."""

    @property
    def asks(self) -> bool:
        """Whether the next request needs ``ask`` first."""

    async def ask(self, waiting: int) -> None:
        """Gets room for ``waiting`` requests, as far as there is any."""

    def wait_s(self) -> float:
        """Seconds during which no request may leave; 0 when one may. Never blocks."""

    def take(self) -> None:
        """A request leaves."""

    def answered(self, window: Window | None) -> None:
        """A request that had left was answered, and what its answer said is left."""

    def gave_up(self) -> None:
        """A request that had left gets no answer any more."""

    def pause(self, seconds: float) -> None:
        """No request may leave for so long, of whichever worker. Never shortens a pause."""

    def follow(self, changed: Callable[[], None]) -> None:
        """``changed`` is called when ``wait_s`` may have become less."""


class LocalBoard:
    """For the requests of one process."""

    asks = False

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._until = 0.0
        self._left: int | None = None  # requests in the provider's window; ``None``: not known
        self._left_until = 0.0

    async def ask(self, waiting: int) -> None:
        """Everything is known here."""

    def wait_s(self) -> float:
        spent = self._left is not None and self._left <= 0
        return max(0.0, self._until - self._clock(), self._left_until - self._clock() if spent else 0.0)

    def take(self) -> None:
        if self._left is not None:
            self._left = None if self._clock() >= self._left_until else self._left - 1

    def answered(self, window: Window | None) -> None:
        if window is not None:
            self._left, self._left_until = window.remaining, self._clock() + window.reset_s

    def gave_up(self) -> None:
        """It may have counted."""

    def pause(self, seconds: float) -> None:
        self._until = max(self._until, self._clock() + seconds)

    def follow(self, changed: Callable[[], None]) -> None:
        """Only its own gate changes it."""


class Spent(Exception):
    """The limit is spent for longer than a request wants to wait: for ``wait_s`` more seconds."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"spent for {wait_s:.1f} s")
        self.wait_s = wait_s


class RateGate:
    """Requests pass freely while no limit is in sight, and wait together when one is.

    After a refusal one request goes ahead, then two, four, …, a second apart, until the first of them
    is let in: otherwise the end of every pause would be answered by as many refusals as there are
    requests. One loop only, but for ``paused_s``.
    """

    def __init__(self, board: Board | None = None, clock: Clock = time.monotonic, first: int = 0) -> None:
        """``first``: how many go ahead before anything is known; 0: all."""
        self._board = board or LocalBoard(clock)
        self._clock = clock
        #: Requests are told apart by the refusals before them: late answers to older ones prove nothing.
        self._round = 0
        self._refusals = 0  # rounds in a row that were refused
        self._group = first  # how many go ahead together; 0: all
        self._group_left = first
        self._group_until = clock() + _GROUP_S if first else 0.0
        self._waiting = 0
        self._changed = asyncio.Event()
        self._board.follow(self._changed.set)

    @property
    def paused_s(self) -> float:
        """Seconds until requests may leave; 0 when they may."""
        return self._board.wait_s()

    async def enter(self, patience_s: float) -> int:
        """Waits for its turn; answers the round, for ``answered``, ``refused`` or ``gave_up``.

        Raises:
            Spent: the turn is further away than ``patience_s`` seconds.
        """
        give_up = self._clock() + patience_s
        self._waiting += 1
        try:
            while True:
                if self._board.asks:
                    await self._board.ask(self._waiting)
                if (turn := self._turn(now := self._clock())) <= now:
                    if self._board.asks:
                        continue  # others were quicker
                    break
                if turn > give_up:
                    raise Spent(turn - now)
                self._changed.clear()
                try:
                    async with asyncio.timeout(turn - now):
                        await self._changed.wait()
                except TimeoutError:
                    pass
        finally:
            self._waiting -= 1
        if self._group:
            self._group_left -= 1
        self._board.take()
        return self._round

    def answered(self, round_: int, headers: Mapping[str, str]) -> None:
        """A request was let in, whatever came of it then."""
        self._board.answered(tightest(windows(headers, time.time())))
        if round_ == self._round and self._group:
            self._refusals = self._group = 0
            self._changed.set()

    def refused(self, round_: int, headers: Mapping[str, str]) -> float | None:
        """A request was refused for now; answers the provider's ``Retry-After``, if it sent one."""
        if round_ == self._round:
            self._refusals += 1
            self._round += 1
            self._group = self._group_left = 1
        self._board.answered(tightest(windows(headers, time.time())))
        pause = after = retry_after_s(headers, time.time())
        if pause is None:
            pause = min(_BARE_CAP_S, _BARE_S * 2.0 ** min(self._refusals - 1, 10))
        self._board.pause(pause)
        self._group_until = max(self._group_until, self._clock() + pause + _GROUP_S)
        self._changed.set()
        return after

    def gave_up(self) -> None:
        """A request got no answer: it could not be sent, broke off, or nobody waits for it any more."""
        self._board.gave_up()

    def _turn(self, now: float) -> float:
        """When the next request may leave, as far as is known."""
        turn = now + self._board.wait_s()
        if turn <= now and self._group and self._group_left <= 0:
            if now < self._group_until:
                return self._group_until
            self._group = self._group_left = self._group * 2
            self._group_until = now + _GROUP_S
        return turn


def gate_of(board: Board | None) -> RateGate:
    """At a shared limit a worker begins slowly: the first answer tells what the others have left of it."""
    return RateGate(board, first=_FIRST) if board else RateGate()
