"""What ties a worker to the fabric: one heartbeat for all its jobs, and the channel that stops them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from redis.exceptions import RedisError

from fabric.contracts.errors import Unavailable
from fabric.contracts.worker import WorkerInfo
from fabric.store import AsyncStore, transitions
from fabric.store.reads import worker_channel
from workers.outbox import Outbox
from workers.runner import Runner

log = logging.getLogger(__name__)

#: Five missed beats make a worker dead (``scheduler.duties.DEAD_AFTER_MS``).
BEAT_S = 1.0
_AWAY_S = 0.2


async def beat(
    store: AsyncStore, runner: Runner, outbox: Outbox, info: Callable[[], WorkerInfo], now: asyncio.Event
) -> None:
    """Says every second what this worker holds, and stops what it should not hold. Until cancelled.

    ``now`` brings the next beat forward.
    """
    away = False
    while True:
        try:
            held = outbox.pending | runner.held
            stops = await store(transitions.heartbeat(info(), list(held)))
            for job_id, why in stops.items():
                runner.stop(job_id, why, attempt=held[job_id])
            if away:
                log.info("the job store is back")
            away = False
        except Unavailable as error:
            if not away:
                log.warning("heartbeats fail: %s", error)
            away = True
        now.clear()
        try:
            # Not ``wait_for``: in Python 3.11 it forgets that it was cancelled when ``now`` comes in the same turn.
            async with asyncio.timeout(_AWAY_S if away else BEAT_S):
                await now.wait()
        except TimeoutError:
            pass


async def listen(store: AsyncStore, runner: Runner, worker_id: str) -> None:
    """Stops jobs the moment they are to be stopped. Heartbeats bring what this misses. Until cancelled."""
    while True:
        try:
            async with store.redis.pubsub(ignore_subscribe_messages=True) as channel:
                await channel.subscribe(worker_channel(worker_id))
                async for message in channel.listen():
                    job_id, _, why = message["data"].decode().partition("\n")
                    runner.stop(job_id, why)
        except (RedisError, OSError):
            await asyncio.sleep(_AWAY_S)
