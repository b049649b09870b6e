"""Numbers and times for people. Pure; the templates' filters."""

from __future__ import annotations

import math
from datetime import UTC, datetime

NOTHING = "–"


def count(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.0f}"


def seconds(value: float | None) -> str:
    """A length of time, in the unit that leaves few figures: ``1.5 ms``, ``2.4 s``, ``3 h 5 min``."""
    if value is None:
        return NOTHING
    if not value:
        return "0 s"
    if value < 0.9995:
        return f"{value * 1000:.2g} ms" if value < 0.01 else f"{value * 1000:.0f} ms"
    if value < 59.95:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} d {hours % 24} h"


def millis(value: float | None) -> str:
    return seconds(None if value is None else value / 1000)


def dollars(value: float | None) -> str:
    """To the cent; below a dollar with three figures that count."""
    if value is None:
        return NOTHING
    sign, size = ("−" if value < 0 else ""), abs(value)
    if size == 0 or size >= 1:
        return f"{sign}${size:,.2f}"
    whole, _, part = f"{size:.{min(9, 2 - math.floor(math.log10(size)))}f}".partition(".")
    return f"{sign}${whole}.{part.rstrip('0'):0<2}"


def share(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:.1%}" if 0 < value < 0.1 else f"{value:.0%}"


def moment(ms: int | None) -> str:
    """A point in time, to the second, in UTC. ``ms``: milliseconds since the epoch."""
    return NOTHING if ms is None else f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M:%S}"


def clock(ms: int) -> str:
    """The time of the day, to the millisecond, in UTC. ``ms``: milliseconds since the epoch."""
    return f"{datetime.fromtimestamp(ms // 1000, UTC):%H:%M:%S}.{ms % 1000:03}"


def machine_time(ms: int) -> str:
    """For the ``datetime`` attribute."""
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%dT%H:%M:%SZ}"


FILTERS = {
    "count": count,
    "seconds": seconds,
    "millis": millis,
    "dollars": dollars,
    "share": share,
    "moment": moment,
    "clock": clock,
    "machine_time": machine_time,
}
