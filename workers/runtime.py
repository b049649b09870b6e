"""The worker process: Celery receives messages on threads, one asyncio loop runs all the jobs.

A message is acknowledged as soon as its jobs are claimed. From then on the lease (the heartbeat)
keeps them, so no broker time-out ever meets a long generation.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import uvloop

from fabric.contracts.catalog import Deployment
from fabric.contracts.errors import Unavailable
from fabric.contracts.ids import new_id
from fabric.contracts.message import Chunk
from fabric.contracts.worker import WorkerInfo
from fabric.store import AsyncStore, Store, transitions
from workers.engines import build
from workers.lifeline import beat, listen
from workers.outbox import Outbox
from workers.runner import Runner

log = logging.getLogger(__name__)

T = TypeVar("T")

#: How long a message waits for room before its jobs go back to the backlog.
_ROOM_S = 3.0


class Runtime:
    """One worker. ``start`` and ``stop`` are called by the process, ``receive`` by Celery's threads."""

    def __init__(self, redis_url: str, tier: str, deployments: Sequence[Deployment]) -> None:
        self.id = new_id("worker")
        self.tier = tier
        self._redis_url = redis_url
        self._claims = Store(redis_url)
        self._deployments = deployments
        self._engines = {d.name: build(d) for d in deployments}
        self._started_ms = int(time.time() * 1000)
        self._draining = False
        self._held: Counter[str] = Counter()
        self._room = threading.Condition()
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engines", daemon=True)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Engines up, heart beating.

        Raises:
            ConfigError: an engine can't work as configured; no job was taken.
        """
        self._thread.start()
        self._on_loop(self._start())

    def receive(self, deployment: str, jobs: Sequence[Sequence[Any]]) -> int:
        """The ``fabric.run`` task: claims a chunk and hands it to the loop. Answers how many were claimed."""
        chunk = Chunk(deployment=deployment, jobs=tuple((str(job_id), int(attempt)) for job_id, attempt in jobs))
        if deployment not in self._engines or not self._wait_for_room(deployment):
            self._claims(transitions.recall(chunk.jobs))
            return 0
        claimed = self._claims(transitions.claim(self.id, chunk.jobs))
        with self._room:
            self._held[deployment] += len(claimed)
        self._loop.call_soon_threadsafe(self._runner.begin, deployment, claimed)
        return len(claimed)

    def drain(self) -> None:
        """No new jobs from now on; the scheduler hears of it at once."""
        if not self._draining:
            self._draining = True
            self._loop.call_soon_threadsafe(self._beat_now.set)

    def stop(self, grace_s: float) -> None:
        """Finishes what runs within ``grace_s`` seconds and hands back the rest."""
        self.drain()
        try:
            self._on_loop(self._finish(grace_s))
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=5)
            self._claims.close()

    def info(self) -> WorkerInfo:
        with self._room:
            running = {name: self._held[name] for name in self._engines}
        slots = {name: engine.slots for name, engine in self._engines.items()}
        return WorkerInfo(
            id=self.id,
            tier=self.tier,
            hostname=socket.gethostname(),
            pid=os.getpid(),
            started_ms=self._started_ms,
            slots=slots,
            capacity={name: 0 if self._draining else _capacity(slots[name]) for name in slots},
            running=running,
            draining=self._draining,
        )

    async def _start(self) -> None:
        for engine in self._engines.values():
            await engine.start()
        self._store = AsyncStore(self._redis_url, connections=8)
        self._outbox = Outbox(self._store, lambda job_id: self._runner.stop(job_id, "lost"))
        self._runner = Runner(self._engines, self._outbox, self._freed)
        self._beat_now = asyncio.Event()
        self._tasks = [
            asyncio.create_task(self._outbox.run()),
            asyncio.create_task(beat(self._store, self._runner, self._outbox, self.info, self._beat_now)),
            asyncio.create_task(listen(self._store, self._runner, self.id)),
        ]

    async def _finish(self, grace_s: float) -> None:
        await self._runner.drained(grace_s)
        try:
            async with asyncio.timeout(max(5.0, grace_s)):
                await self._outbox.drained()
                handed_back = await self._store(transitions.hand_back(self.id))
                if handed_back:
                    log.info("handed back %d jobs", handed_back)
        except (TimeoutError, Unavailable):
            log.warning("the job store is away: the jobs in hand go elsewhere when the heartbeat has stopped")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for engine in self._engines.values():
            await engine.close()
        await self._store.close()

    def _freed(self, deployment: str) -> None:
        with self._room:
            self._held[deployment] -= 1
            self._room.notify()

    def _wait_for_room(self, deployment: str) -> bool:
        # One chunk beyond the capacity: the scheduler counts the room of all workers together.
        limit = _capacity(self._engines[deployment].slots) + self._engines[deployment].slots
        with self._room:
            return self._room.wait_for(lambda: self._draining or self._held[deployment] < limit, _ROOM_S) and (
                not self._draining
            )

    def _on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def _capacity(slots: int) -> int:
    """Twice the slots: what runs, and as much again so that no slot waits for the broker."""
    return 2 * slots
