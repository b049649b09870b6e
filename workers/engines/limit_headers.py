"""What providers say of their rate limits in the headers of an answer. Pure.

``Retry-After`` on a refusal, and on every answer what is left of the current window
(``x-ratelimit-remaining-…`` and ``-reset-…``, Anthropic's ``anthropic-ratelimit-…``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime

#: Longest pause believed: whoever says more is misread or broken.
_LONGEST_S = 86_400.0

_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")
_NUMBER = re.compile(r"\d{1,15}(\.\d{1,9})?")

#: Headers of what is left, of when it is whole again, and of how much that is.
_WINDOWS = (
    *(
        tuple(f"x-ratelimit-{what}{of}" for what in ("remaining", "reset", "limit"))
        for of in ("-requests", "-tokens", "")
    ),
    *(
        tuple(f"anthropic-ratelimit-{of}-{what}" for what in ("remaining", "reset", "limit"))
        for of in ("requests", "tokens", "input-tokens", "output-tokens")
    ),
)


@dataclass(frozen=True, slots=True)
class Window:
    """What is left of one counter, and in how many seconds it is full again. ``requests``, or tokens."""

    remaining: int
    reset_s: float
    requests: bool
    size: int | None = None  #: what there is when it is full


def windows(headers: Mapping[str, str], now: float) -> list[Window]:
    """Every counter that the headers tell of, wrong ones left out. ``now``: seconds since the epoch."""
    found = []
    for remaining_name, reset_name, limit_name in _WINDOWS:
        remaining, reset = headers.get(remaining_name), headers.get(reset_name)
        if remaining is not None and reset is not None and _NUMBER.fullmatch(remaining):
            reset_s = _until(reset, now)
            if reset_s is not None:
                limit = headers.get(limit_name, "")
                size = int(float(limit)) if _NUMBER.fullmatch(limit) else None
                found.append(Window(int(float(remaining)), reset_s, "tokens" not in remaining_name, size))
    return found


def tightest(found: list[Window]) -> Window | None:
    """One that is spent, else that of requests with the fewest left: what is left of tokens counts no requests."""
    spent = [window for window in found if window.remaining <= 0]
    counted = spent or [window for window in found if window.requests]
    return min(counted, key=lambda window: (window.remaining, -window.reset_s)) if counted else None


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
