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
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, TypeVar

import uvloop

from fabric.contracts.breaker import dump
from fabric.contracts.catalog import Deployment, PrivacyRules
from fabric.contracts.errors import Unavailable
from fabric.contracts.ids import new_id
from fabric.contracts.job_seals import WorkerSeals
from fabric.contracts.message import Chunk
from fabric.contracts.worker import WorkerInfo
from fabric.contracts.zones import WorkerKeys
from fabric.store import AsyncStore, Command, Store, bad_messages, reads, transitions
from workers.engines import build
from workers.engines.shelf import Shelf
from workers.lifeline import beat, listen
from workers.outbox import Outbox
from workers.provider_registers import ProviderRegisters
from workers.runner import Runner
from workers.shared_limits import SharedLimits
from workers.starting import start_all
from workers.wall import Wall

log = logging.getLogger(__name__)

T = TypeVar("T")

#: How long a message waits for room before its jobs go back to the backlog. Longer wastes fewer
#: attempts where workers are unevenly busy; shorter lets a worker with room have the jobs sooner.
_ROOM_S = 1.0
_AWAY_S = 0.1
#: What the last outcomes may take to be stored after the grace is over.
_FLUSH_S = 3.0
#: Jobs handed back in one call: it holds up the store while it runs.
_HAND_BACK = 500
#: What ``sysexits.h`` calls an error in the program itself.
_EX_SOFTWARE = 70


class Runtime:
    """One worker. ``start`` and ``stop`` are called by the process, ``receive`` by Celery's threads."""

    def __init__(
        self,
        redis_url: str,
        tier: str,
        deployments: Sequence[Deployment],
        keys: WorkerKeys,
        wall: Wall | None = None,
    ) -> None:
        """``keys``: of the zones of all deployments. ``wall``: of the labels; without one, that of a
        fabric that nobody has configured."""
        self.id = new_id("worker")
        self._seals = WorkerSeals(keys)
        self._wall = wall or Wall(PrivacyRules())
        self.tier = tier
        self._redis_url = redis_url
        self._claims = Store(redis_url)
        self._limits = SharedLimits(self.id)
        self._registers = ProviderRegisters()
        self._shelf = Shelf()
        self._engines = {d.name: build(d, self._limits.board, self._registers.of, self._shelf) for d in deployments}
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
        """The ``fabric.run`` task: claims a chunk and hands it to the loop. Answers how many were claimed.

        Raises:
            Unavailable: the store is away and this worker is stopping; the message belongs back in its queue.
        """
        chunk = Chunk(deployment=deployment, jobs=tuple((str(job_id), int(attempt)) for job_id, attempt in jobs))
        if deployment not in self._engines or not self._wait_for_room(deployment):
            self._insist(transitions.decline(chunk.jobs))
            return 0
        claimed = self._insist(transitions.claim(self.id, chunk.jobs, deployment=deployment))
        # Stale messages are normal; one that names no job there is isn't.
        if not claimed and not self._insist(reads.exist([job_id for job_id, _ in chunk.jobs])):
            queue = self._engines[deployment].deployment.queue
            self.set_aside("unknown job", chunk.model_dump_json().encode(), queue)
        with self._room:
            self._held[deployment] += len(claimed)
        self._loop.call_soon_threadsafe(self._runner.begin, deployment, claimed)
        return len(claimed)

    def set_aside(self, reason: str, message: bytes, queue: str) -> None:
        """Keeps a message that nobody can read. Returns at once; a store that is away misses it."""
        asyncio.run_coroutine_threadsafe(self._set_aside(reason, message, queue), self._loop)

    def drain(self) -> None:
        """No new jobs from now on; the scheduler hears of it at once. Safe in a signal handler."""
        if not self._draining:
            self._draining = True
            self._loop.call_soon_threadsafe(self._say_draining)

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
        """What the heartbeat says. Engines may have found more or fewer slots since the last one."""
        self._runner.resize()
        self._wall.look()
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
            capacity={name: 0 if self._draining else self._capacity(name, slots[name]) for name in slots},
            running=running,
            draining=self._draining,
            context={name: tokens for name, engine in self._engines.items() if (tokens := engine.context) is not None},
            states={name: engine.state for name, engine in self._engines.items()},
        )

    async def _start(self) -> None:
        self._store = AsyncStore(self._redis_url, connections=8)
        self._registers.open(self._store)
        self._late = await start_all(self._engines.values())
        rules = dump((name, engine.deployment.breaker) for name, engine in self._engines.items())
        self._outbox = Outbox(self._store, self._lost, rules)
        self._runner = Runner(self._engines, self._outbox, self._freed, self._seals, self._wall)
        self._beat_now = asyncio.Event()
        duties = (
            self._outbox.run(),
            beat(self._store, self._runner, self._outbox, self.info, self._beat_now),
            listen(self._store, self._runner, self.id),
            self._limits.run(self._store),
        )
        for duty in duties:
            task = asyncio.create_task(duty)
            task.add_done_callback(_die_of)
            self._tasks.append(task)

    async def _finish(self, grace_s: float) -> None:
        until = self._loop.time() + grace_s + _FLUSH_S
        await self._set_down()
        await self._runner.drained(grace_s)
        try:
            async with asyncio.timeout_at(until):
                await self._outbox.drained()
        except TimeoutError:
            log.warning("the job store is away: the jobs in hand go elsewhere when the heartbeat has stopped")
        # No beat after the farewell: it would bring the worker back to life.
        await _end(self._tasks)
        try:
            async with asyncio.timeout_at(until):
                handed_back = await self._store(transitions.hand_back(self.id))
            log.info("stopped; handed back %d jobs", handed_back)
        except (TimeoutError, Unavailable):
            log.warning("stopped without a farewell: the job store is away")
        await _end(self._late)
        for engine in self._engines.values():
            await engine.close()
        await self._store.close()

    async def _set_down(self) -> None:
        """Hands back at once what waits for a provider: nothing of it is finished by waiting here."""
        waiting = self._runner.set_down()
        try:
            for start in range(0, len(waiting), _HAND_BACK):
                await self._store(transitions.hand_back(self.id, waiting[start : start + _HAND_BACK]))
        except Unavailable:
            pass  # with all the others, later
        if waiting:
            log.info("handed back %d jobs that wait for providers", len(waiting))

    async def _set_aside(self, reason: str, message: bytes, queue: str) -> None:
        try:
            await self._store(bad_messages.set_aside(reason, message, queue))
        except Unavailable as error:
            log.warning("a bad message wasn't kept: %s", error)

    def _lost(self, job_id: str, attempt: int) -> None:
        self._runner.stop(job_id, "lost", attempt=attempt)

    def _freed(self, deployment: str) -> None:
        with self._room:
            self._held[deployment] -= 1
            self._room.notify_all()

    def _say_draining(self) -> None:
        self._beat_now.set()
        with self._room:
            self._room.notify_all()

    def _wait_for_room(self, deployment: str) -> bool:
        # One set of slots beyond the capacity: the scheduler may overbook, and counts all workers together.
        slots = self._engines[deployment].slots
        limit = self._capacity(deployment, slots) + slots
        with self._room:
            self._room.wait_for(lambda: self._draining or self._held[deployment] < limit, _ROOM_S)
            return self._held[deployment] < limit and not self._draining

    def _capacity(self, deployment: str, slots: int) -> int:
        """Twice the slots: what runs, and as much again so that no slot waits for the broker. Where jobs wait for
        minutes that matters nothing."""
        return slots if self._engines[deployment].waits else 2 * slots

    def _insist(self, command: Command[T]) -> T:
        """Tries until the store is back. The message stays with us and unacknowledged meanwhile."""
        while True:
            try:
                return self._claims(command)
            except Unavailable:
                if self._draining:
                    raise
            time.sleep(_AWAY_S)

    def _on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


async def _end(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancels until all are done. Once isn't enough: redis-py sends under ``asyncio.wait_for``, which in Python
    3.11 forgets that it was cancelled when what it waits for is done in the same turn."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=0.1)


def _die_of(task: asyncio.Task[None]) -> None:
    """A worker that can't beat, commit or listen any more must not go on holding jobs: a dead one is rescued."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("the worker can't go on: %s", type(error).__name__, exc_info=error)
        logging.shutdown()
        os._exit(_EX_SOFTWARE)
