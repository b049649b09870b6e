"""Whether a request's deadline can be met, asked before it is accepted: from what was read a moment ago."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from fabric.contracts.catalog import Catalog
from fabric.contracts.experience import Experience
from fabric.contracts.job import JobSpec, Priority
from fabric.routing import World, budgets, decide, reads_budgets, too_near, world_of
from fabric.store import reads, transitions
from fabric.store.budgets import balances
from fabric.store.transitions import Room

if TYPE_CHECKING:
    from fabric.gateway.gateway import Gateway

#: How old the state of the fabric may be. Newer tells a burst of requests sooner that it is one, and costs reads.
FRESH_S = 0.25


#: Jobs by model and class.
Came = Counter[tuple[str, Priority]]
_NOBODY: Came = Counter()


Used = Mapping[str, float]  #: budget -> share
_NOTHING: Used = {}


async def used_budgets(gateway: Gateway) -> Used:
    """Empty where no rule reads it. Raises ``Unavailable``."""
    catalog = gateway.catalog
    if not reads_budgets(catalog, gateway.policy_hash):
        return _NOTHING
    found = await gateway.ask(balances(budgets.windows(catalog, time.time_ns() // 1_000_000)))
    return budgets.used(catalog, [b.taken if b else 0 for b in found])


def world_now(
    room: Room, experience: Experience, catalog: Catalog, used: Used = _NOTHING, came: Came = _NOBODY
) -> World:
    """As it is for a job that comes now and lines up behind those that wait. ``came``: jobs that aren't in ``room``
    yet."""
    waiting = came.copy()
    for lane in room.lanes:
        waiting[lane.model, lane.priority] += lane.length
    now_ms = time.time_ns() // 1_000_000
    return world_of(
        room.workers,
        room.busy,
        catalog,
        experience=experience,
        now_ms=now_ms,
        waiting=waiting,
        breakers=room.breakers,
        filled=room.filled,
        budgets=used,
    )


class Outlook:
    """However many requests with deadlines come, the store is read four times a second at most; without any, never.

    What came in through this gateway since then counts, so that a burst is told at once that it is one.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._seen: tuple[Room, Experience, Used] | None = None
        self._until_s = 0.0
        self._came: Came = Counter()
        self._reading: asyncio.Task[tuple[Room, Experience, Used]] | None = None

    async def check(self, spec: JobSpec) -> None:
        """
        Raises:
            Busy: the deadline can't be met now; ``retry_after_s`` says when a request like it could.
            InvalidRequest: it can't be met at all.
            Unavailable: the store is away.
        """
        if spec.deadline_ms is not None:
            room, experience, used = await self._now()
            gateway = self._gateway
            catalog, seen = gateway.catalog, world_now(room, experience, gateway.catalog, used, self._came)
            error = too_near(spec, decide(spec, catalog, gateway.policy_hash, seen), catalog, seen)
            if error is not None:
                raise error
        self._came[spec.model, spec.priority] += 1

    async def _now(self) -> tuple[Room, Experience, Used]:
        if self._seen is not None and time.monotonic() < self._until_s:
            return self._seen
        if self._reading is None:
            self._came = Counter()
            self._reading = asyncio.create_task(self._read())
            self._reading.add_done_callback(self._done)
        return await asyncio.shield(self._reading)

    def _done(self, reading: asyncio.Task[tuple[Room, Experience, Used]]) -> None:
        self._reading = None
        if not reading.cancelled() and reading.exception() is None:
            self._seen = reading.result()
            self._until_s = time.monotonic() + FRESH_S

    async def _read(self) -> tuple[Room, Experience, Used]:
        room, experience = await asyncio.gather(
            self._gateway.ask(transitions.room()), self._gateway.ask(reads.experience())
        )
        return room, experience, await used_budgets(self._gateway)
