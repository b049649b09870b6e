"""One job's story as a line of time: what it waited for, where it ran, how each attempt ended. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["backlog", "queue", "engine"]
#: Said of each part of the line.
SAID: Mapping[Kind, str] = {"backlog": "waited in the backlog", "queue": "on its way to a worker", "engine": "ran"}
#: Parts narrower than this, in percent, are drawn this wide: what was short still happened.
_NARROWEST = 0.5


@dataclass(frozen=True, slots=True)
class Part:
    """``start`` and ``width``: percent of the whole line; ``place``: the deployment, where there was one."""

    kind: Kind
    seconds: float
    start: float
    width: float
    place: str | None = None

    @property
    def said(self) -> str:
        return SAID[self.kind]


@dataclass(frozen=True, slots=True)
class Story:
    """``seconds``: from acceptance to the end, or to the last thing that is known."""

    parts: tuple[Part, ...]
    seconds: float


#: What a job that hasn't ended is doing at this moment.
_DOING: Mapping[str, Kind] = {"queued": "backlog", "dispatched": "queue", "running": "engine"}


def story(job: Mapping[str, Any], now_ms: int) -> Story:
    """``job``: as the API shows it. ``now_ms``: where the line of one that hasn't ended stops (epoch)."""
    begin = job["accepted_ms"]
    spans: list[tuple[Kind, int, int, str | None]] = []
    at = begin
    for attempt in job["attempts"]:
        # A second try that ran beside the one before, which it outran: that time is on the line already.
        beside = attempt.get("claimed_ms") is not None and attempt["claimed_ms"] < at
        for kind, name in (("backlog", "dispatched_ms"), ("queue", "claimed_ms"), ("engine", "ended_ms")):
            until = attempt.get(name)
            if until is not None and until >= at and not (beside and until == at):
                spans.append((kind, at, until, None if kind == "backlog" else attempt["deployment"]))  # type: ignore[arg-type]
                at = until
    if job["finished_ms"] is not None and job["finished_ms"] > at:
        spans.append(("backlog", at, job["finished_ms"], None))
        at = job["finished_ms"]
    doing = _DOING.get(job["state"])
    if doing is not None and now_ms > at:
        place = job["attempts"][-1]["deployment"] if job["attempts"] and doing != "backlog" else None
        spans.append((doing, at, now_ms, place))
        at = now_ms
    whole = max(1, at - begin)
    parts = []
    for kind, start, end, place in spans:
        percent = 100 * (end - start) / whole
        parts.append(Part(kind, (end - start) / 1000, 100 * (start - begin) / whole, max(_NARROWEST, percent), place))
    return Story(tuple(parts), (at - begin) / 1000)
