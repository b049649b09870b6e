"""What the console shows of the fabric as it is now: read from the store once a second at most, for all viewers."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from fabric.contracts.catalog import TIERS, Catalog, Tier
from fabric.contracts.job import JobState
from fabric.gateway.console.once import Once
from fabric.gateway.gateway import Gateway
from fabric.gateway.queueing import backlog_s
from fabric.gateway.tiers import tiers
from fabric.store import counts, reads, transitions
from fabric.store.counts import Counts
from fabric.store.transitions import Room

#: Seconds between two looks, and between two updates of a page.
BEAT_S = 1.0
#: What rates and percentiles are of, in whole minutes and the one that runs.
WINDOW_MINUTES = 15


@dataclass(frozen=True, slots=True)
class TierNow:
    """One tier. ``deployments``: as ``GET /v1/tiers`` has them. Times in seconds; what can't be told is ``None``.

    Rates, percentiles and the share of errors are of the last minutes. ``wait_p50_s`` is from acceptance to the
    worker, ``engine_p50_s`` inside the engine.
    """

    tier: Tier
    workers: int
    slots: int
    busy: int
    backlog: int
    backlog_s: float
    wait_p50_s: float | None
    engine_p50_s: float | None
    engine_p95_s: float | None
    ended: int
    errors: float | None
    per_minute: float
    deployments: list[dict[str, object]]


@dataclass(frozen=True, slots=True)
class Now:
    """``per_minute``: (minutes since the epoch, tier -> jobs that ended), oldest first, without the running one."""

    at_ms: int
    waiting: Mapping[str, int]
    parked: int
    tiers: tuple[TierNow, ...]
    per_minute: tuple[tuple[int, Mapping[str, float]], ...]

    @property
    def busy(self) -> int:
        return sum(tier.busy for tier in self.tiers)

    @property
    def slots(self) -> int:
        return sum(tier.slots for tier in self.tiers)


class Pulse:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._once = Once(BEAT_S * 0.9)
        #: Minutes that are over don't change any more.
        self._minutes: dict[int, Counts] = {}

    async def now(self) -> Now:
        """Not older than a beat. Raises ``Unavailable``."""
        return await self._once.get("now", self._look)

    async def _look(self) -> Now:
        gateway, now_ms = self._gateway, time.time_ns() // 1_000_000
        room, pace_s, parked, minutes = await asyncio.gather(
            gateway.ask(transitions.room()),
            gateway.ask(reads.pace()),
            gateway.ask(reads.parked_count()),
            self._last_minutes(now_ms // 60_000),
        )
        waits = {tier: backlog_s(tier, gateway.catalog, room, pace_s) for tier in TIERS}
        return seen(now_ms, gateway.catalog, room, waits, parked, minutes)

    async def _last_minutes(self, current: int) -> dict[int, Counts]:
        wanted = range(current - WINDOW_MINUTES, current + 1)
        # The minute before is read again: recorders may be a little late.
        missing = [number for number in wanted if number >= current - 1 or number not in self._minutes]
        found = await self._gateway.ask_all(map(counts.minute, missing))
        self._minutes = {n: known for n, known in self._minutes.items() if n in wanted} | dict(
            zip(missing, found, strict=True)
        )
        return {number: self._minutes[number] for number in wanted}


def seen(
    now_ms: int,
    catalog: Catalog,
    room: Room,
    backlog_seconds: Mapping[Tier, float],
    parked: int,
    minutes: Mapping[int, Counts],
) -> Now:
    """Puts the answers of the store together. Pure."""
    window = counts.summed(minutes.values())
    waiting: Counter[str] = Counter()
    for lane in room.lanes:
        waiting[lane.priority] += lane.length
    shown = tuple(_tier(shown, window, backlog_seconds) for shown in tiers(catalog, room))
    *over, _ = sorted(minutes)
    per_minute = tuple((number, _ended(minutes[number])) for number in over)
    return Now(now_ms, waiting, parked, shown, per_minute)


def _tier(shown: Mapping[str, object], window: Counts, backlog_seconds: Mapping[Tier, float]) -> TierNow:
    tier: Tier = shown["tier"]  # type: ignore[assignment]
    states: Counter[str] = Counter()
    for name, amount in window.items():
        if name[0] == "jobs" and name[1] == tier:
            states[name[3]] += int(amount)
    succeeded, bad = states[JobState.SUCCEEDED], states[JobState.FAILED] + states[JobState.DEAD]
    ended = sum(states.values())
    return TierNow(
        tier=tier,
        workers=shown["workers"],  # type: ignore[arg-type]
        slots=shown["slots"],  # type: ignore[arg-type]
        # More are at a worker than run: some wait at its gate.
        busy=sum(min(place["busy"], place["slots"]) for place in shown["deployments"]),  # type: ignore[attr-defined]
        backlog=shown["backlog"],  # type: ignore[arg-type]
        backlog_s=backlog_seconds.get(tier, 0.0),
        wait_p50_s=counts.quantile(window, "wait", tier, 0.5),
        engine_p50_s=counts.quantile(window, "engine", tier, 0.5),
        engine_p95_s=counts.quantile(window, "engine", tier, 0.95),
        ended=ended,
        errors=bad / (succeeded + bad) if succeeded + bad else None,
        per_minute=ended / WINDOW_MINUTES,
        deployments=shown["deployments"],  # type: ignore[arg-type]
    )


def _ended(minute: Counts) -> dict[str, float]:
    ended: Counter[str] = Counter()
    for name, amount in minute.items():
        if name[0] == "jobs":
            ended[name[1]] += int(amount)
    return dict(ended)


def chart_of(now: Now) -> dict[str, object]:
    """Jobs that ended by the minute and tier, for the page's script: times in seconds since the epoch."""
    names = [tier.tier for tier in now.tiers]
    return {
        "x": [number * 60 for number, _ in now.per_minute],
        "series": [{"name": name, "y": [by.get(name, 0) for _, by in now.per_minute]} for name in names],
        "unit": "jobs/min",
    }
