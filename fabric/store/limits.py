"""A provider's rate limit, shared by the workers that use one account. The rules are in ``scripts/share_limit.lua``."""

from __future__ import annotations

from dataclasses import dataclass

from fabric.store.command import Argument, Command, call

#: Carries ``News``, as text.
CHANNEL = "fabric:limits"


@dataclass(frozen=True, slots=True)
class Seen:
    """What the newest answer said: requests left, how long ago (``age_s``), seconds until they are whole again,
    and how many that are."""

    left: int
    age_s: float
    reset_s: float
    whole: int | None


@dataclass(frozen=True, slots=True)
class Share:
    """What a worker may send now. Spans in seconds: clocks differ."""

    pause_s: float
    permits: int
    more_in_s: float  #: where there were fewer permits than wanted
    tells: bool  #: the provider says what is left; else nobody needs permits


def share(
    limit: str,
    worker: str,
    *,
    pause_s: float | None = None,
    kept: int = 0,
    returned: int = 0,
    recent: int = 0,
    seen: Seen | None = None,
    wanted: int = 0,
) -> Command[Share]:
    """``kept`` and ``returned``: permits of earlier calls that weren't used. ``recent``: requests sent so lately that
    the provider may not have counted them."""
    arguments: list[Argument] = [limit, worker, "" if pause_s is None else _ms(pause_s), kept, returned, recent]
    if seen is None:
        arguments += ("", "", "", "")
    else:
        whole: Argument = "" if seen.whole is None else seen.whole
        arguments += (seen.left, _ms(seen.age_s), _ms(seen.reset_s), whole)
    return call("share_limit", [*arguments, wanted], _share)


@dataclass(frozen=True, slots=True)
class News:
    """Told to all workers at once: a pause, or that a limit is in sight."""

    limit: str
    pause_s: float
    tells: bool

    @classmethod
    def load(cls, message: bytes) -> News:
        limit, pause_ms, tells = message.decode().split("\n")
        return cls(limit, int(pause_ms) / 1000, bool(tells))


def _ms(seconds: float) -> int:
    return max(0, round(seconds * 1000))


def _share(answer: list[bytes]) -> Share:
    pause_ms, permits, more_ms, tells = answer
    return Share(int(pause_ms) / 1000, int(permits), int(more_ms) / 1000, bool(tells))
