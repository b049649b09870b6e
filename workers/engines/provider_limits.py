"""A provider's rate limit, obeyed by all requests of this worker to one deployment.

Providers tell of it in three ways, all read here: ``Retry-After`` on a refusal, what is left of the
current window on every answer (``x-ratelimit-remaining-…`` and ``-reset-…``, Anthropic's
``anthropic-ratelimit-…``), and a bare 429. ``RateGate`` is where requests wait.

Workers of one deployment share one account. What they would tell each other goes through a ``Board``:
``LocalBoard`` is for one process. One on Redis publishes ``pause`` and keeps a copy for ``paused_s``,
so that no request waits for Redis.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Protocol

Clock = Callable[[], float]

#: Longest pause believed: whoever says more is misread or broken.
_LONGEST_S = 86_400.0
#: Pauses after refusals that don't say how long: doubled each time, up to the cap.
_BARE_S = 1.0
_BARE_CAP_S = 30.0

_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")
_NUMBER = re.compile(r"\d{1,15}(\.\d{1,9})?")

#: While a limit is probed, the next requests go this long after the last ones. Refusals come at once.
_GROUP_S = 1.0

#: Headers of what is left and of when it is whole again.
_WINDOWS = (
    ("x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
    ("x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"),
    ("x-ratelimit-remaining", "x-ratelimit-reset"),
    ("anthropic-ratelimit-requests-remaining", "anthropic-ratelimit-requests-reset"),
    ("anthropic-ratelimit-tokens-remaining", "anthropic-ratelimit-tokens-reset"),
    ("anthropic-ratelimit-input-tokens-remaining", "anthropic-ratelimit-input-tokens-reset"),
    ("anthropic-ratelimit-output-tokens-remaining", "anthropic-ratelimit-output-tokens-reset"),
)


@dataclass(frozen=True, slots=True)
class Window:
    """What is left of one counter, and in how many seconds it is full again. ``requests``, or tokens."""

    remaining: int
    reset_s: float
    requests: bool


def windows(headers: Mapping[str, str], now: float) -> list[Window]:
    """Every counter that the headers tell of, wrong ones left out. ``now``: seconds since the epoch."""
    found = []
    for remaining_name, reset_name in _WINDOWS:
        remaining, reset = headers.get(remaining_name), headers.get(reset_name)
        if remaining is not None and reset is not None and _NUMBER.fullmatch(remaining):
            reset_s = _until(reset, now)
            if reset_s is not None:
                found.append(Window(int(float(remaining)), reset_s, "tokens" not in remaining_name))
    return found


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """``Retry-After`` in seconds or as a date (RFC 9110, 10.2.3), or OpenAI's ``retry-after-ms``."""
    milliseconds = headers.get("retry-after-ms", "")
    if _NUMBER.fullmatch(milliseconds):
        return min(float(milliseconds) / 1000, _LONGEST_S)
    value = headers.get("retry-after", "").strip()
    if _NUMBER.fullmatch(value):
        return min(float(value), _LONGEST_S)
    date = _http_date(value)
    if date is None:
        return None
    # The server's own clock, where it tells it: ours may be wrong.
    return min(max(0.0, date - (_http_date(headers.get("date", "")) or now)), _LONGEST_S)


def _until(reset: str, now: float) -> float | None:
    """Seconds until ``reset``: ``6m0s``, ``120``, an epoch time in seconds or milliseconds, or RFC 3339."""
    reset = reset.strip()
    if _NUMBER.fullmatch(reset):
        number = float(reset)
        if number > 1e11:
            number /= 1000
        seconds = number - now if number > 1e9 else number
    elif (parts := _DURATION.fullmatch(reset)) and reset:
        days, hours, minutes, whole, milliseconds = (float(part or 0) for part in parts.groups())
        seconds = days * 86_400 + hours * 3600 + minutes * 60 + whole + milliseconds / 1000
    else:
        try:
            seconds = datetime.fromisoformat(reset).timestamp() - now
        except (ValueError, OverflowError):
            return None
    return min(max(0.0, seconds), _LONGEST_S)


def _http_date(value: str) -> float | None:
    try:
        return parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


class Board(Protocol):
    """What the workers of one deployment know together. Spans, not times: their clocks differ."""

    def paused_s(self) -> float:
        """Seconds during which no request may leave. Never blocks."""

    def pause(self, seconds: float) -> None:
        """Tells the others. Never blocks, never shortens a pause."""


class LocalBoard:
    """For the requests of one process."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._until = 0.0

    def paused_s(self) -> float:
        return max(0.0, self._until - self._clock())

    def pause(self, seconds: float) -> None:
        self._until = max(self._until, self._clock() + seconds)


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

    def __init__(self, board: Board | None = None, clock: Clock = time.monotonic) -> None:
        self._board = board or LocalBoard(clock)
        self._clock = clock
        self._left: int | None = None  # requests in the provider's window; ``None``: not known
        self._left_until = 0.0
        #: Requests are told apart by the refusals before them: late answers to older ones prove nothing.
        self._round = 0
        self._refusals = 0  # rounds in a row that were refused
        self._group = 0  # how many go ahead together; 0: all
        self._group_left = 0
        self._group_until = 0.0
        self._changed = asyncio.Event()

    @property
    def paused_s(self) -> float:
        """Seconds until requests may leave; 0 when they may."""
        now = self._clock()
        return self._opens_at(now) - now

    async def enter(self, patience_s: float) -> int:
        """Waits for its turn; answers the round, for ``answered`` and ``refused``.

        Raises:
            Spent: the turn is further away than ``patience_s`` seconds.
        """
        give_up = self._clock() + patience_s
        while (turn := self._turn(now := self._clock())) > now:
            if turn > give_up:
                raise Spent(turn - now)
            self._changed.clear()
            try:
                async with asyncio.timeout(turn - now):
                    await self._changed.wait()
            except TimeoutError:
                pass
        if self._group:
            self._group_left -= 1
        if self._left is not None:
            self._left -= 1
        return self._round

    def answered(self, round_: int, headers: Mapping[str, str]) -> None:
        """A request was let in, whatever came of it then."""
        self._count(windows(headers, time.time()))
        if round_ == self._round and self._group:
            self._refusals = self._group = 0
            self._changed.set()

    def refused(self, round_: int, headers: Mapping[str, str]) -> float | None:
        """A request was refused for now; answers the provider's ``Retry-After``, if it sent one."""
        if round_ == self._round:
            self._refusals += 1
            self._round += 1
            self._group = self._group_left = 1
        self._count(windows(headers, time.time()))
        pause = after = retry_after_s(headers, time.time())
        if pause is None:
            pause = min(_BARE_CAP_S, _BARE_S * 2.0 ** min(self._refusals - 1, 10))
        self._board.pause(pause)
        self._group_until = max(self._group_until, self._clock() + pause + _GROUP_S)
        self._changed.set()
        return after

    def _turn(self, now: float) -> float:
        """When the next request may leave, as far as is known."""
        if self._left is not None and now >= self._left_until:
            self._left = None
        turn = self._opens_at(now)
        if turn <= now and self._group and self._group_left <= 0:
            if now < self._group_until:
                return self._group_until
            self._group = self._group_left = self._group * 2
            self._group_until = now + _GROUP_S
        return turn

    def _opens_at(self, now: float) -> float:
        spent = self._left is not None and self._left <= 0
        return max(now + self._board.paused_s(), self._left_until if spent else now)

    def _count(self, found: list[Window]) -> None:
        """Keeps the tightest window: one that is spent, else the one with the fewest requests left."""
        spent = [window for window in found if window.remaining <= 0]
        counted = spent or [window for window in found if window.requests]
        if counted:
            tightest = min(counted, key=lambda window: (window.remaining, -window.reset_s))
            self._left, self._left_until = tightest.remaining, self._clock() + tightest.reset_s
