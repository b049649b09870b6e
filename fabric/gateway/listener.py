"""Hears the events of every job that this gateway follows: one subscription for the whole process.

A message is ``job id \\n event number \\n event [\\n result]``; pieces of answers and results are sealed. Event
numbers make the channel safe: a gap, or a connection that was away, is made good by reading the job's log from the
first missing number. Nothing is polled.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Iterator
from typing import Any

import redis.asyncio
from redis.exceptions import RedisError

from fabric.contracts.errors import BrokenSeal, NotFound, Unavailable
from fabric.contracts.job import JobState
from fabric.contracts.job_seals import SEALED_PIECE, HomeSeals
from fabric.gateway.follow import Event, Follow
from fabric.store import AsyncStore, reads, transitions

log = logging.getLogger(__name__)

#: A connection that said nothing for three times this long is taken for dead.
_PING_S = 5.0
_RETRY_S = 0.05
_RETRY_LIMIT_S = 0.5
#: The number of the event that ``accept`` writes; the first that is sent is the next one.
ACCEPTED = 1


class Listener:
    def __init__(self, store: AsyncStore, redis_url: str, gateway_id: str, seals: HomeSeals) -> None:
        self.channel = reads.gateway_channel(gateway_id)
        self._seals = seals
        self._store = store
        # RESP2: messages of a subscription come as plain arrays, at a tenth of the cost of redis-py's PubSub.
        self._pool: Any = redis.asyncio.ConnectionPool.from_url(
            redis_url, protocol=2, socket_timeout=None, socket_connect_timeout=1.0
        )
        self._follows: dict[str, list[Follow]] = {}
        self._recoveries: dict[Follow, asyncio.Task[None]] = {}
        self._ready = asyncio.Event()
        self._heard = 0.0
        #: Counts connections: what was sent between two of them may have been missed.
        self._epoch = 0

    @contextlib.contextmanager
    def follow(self, job_id: str, tenant: str, *, after: int = 0, final_only: bool = False) -> Iterator[Follow]:
        """Events of a job of this tenant after number ``after``, for as long as the context is open.

        For a job that is being accepted with ``channel`` as its watcher, begin before the call with
        ``after=ACCEPTED`` and ``confirm`` after it. For a job that is there already, ``join``.
        """
        follow = Follow(job_id, tenant, after=after, final_only=final_only, epoch=self._epoch)
        self._follows.setdefault(job_id, []).append(follow)
        try:
            yield follow
        finally:
            self._leave(follow)

    def confirm(self, follow: Follow) -> None:
        """The store has the job."""
        follow.live = True
        if follow.epoch != self._epoch or follow.ahead > follow.last:
            self._recover(follow)

    async def join(self, follow: Follow) -> JobState:
        """Answers the job's state; what happened before is there to be read.

        Raises:
            NotFound: there is no such job.
            Unavailable: the store is away.
        """
        follow.live = True
        state = await self._catch_up(follow)
        if state is None:
            raise NotFound("There is no job with this id, or its events have expired.")
        return state

    @property
    def subscribed(self) -> bool:
        """Whether events come as they happen; otherwise they come late, when the store is back."""
        return self._ready.is_set()

    @property
    def following(self) -> int:
        """Jobs that somebody here follows."""
        return len(self._follows)

    async def ready(self) -> None:
        """Returns when the subscription stands."""
        await self._ready.wait()

    async def run(self) -> None:
        """Until cancelled."""
        delay = _RETRY_S
        while True:
            connection: Any = self._pool.make_connection()
            try:
                await self._subscribe(connection)
                delay = _RETRY_S
                await self._listen(connection)
            except Exception as error:  # noqa: BLE001 - a gateway that is deaf for good would be worse
                if self._ready.is_set() or not isinstance(error, RedisError | OSError | TimeoutError):
                    log.warning("the event channel is away (%s); waiting requests stay", type(error).__name__)
                self._ready.clear()
                await asyncio.sleep(delay)
                delay = min(delay * 2, _RETRY_LIMIT_S)
            finally:
                await connection.disconnect(nowait=True)

    async def _subscribe(self, connection: Any) -> None:
        await connection.connect()
        await connection.send_command("SUBSCRIBE", self.channel)
        await connection.read_response(timeout=_PING_S)
        self._heard = time.monotonic()
        self._epoch += 1
        self._ready.set()
        for follows in self._follows.values():
            for follow in follows:
                if follow.live:
                    self._recover(follow)

    async def _listen(self, connection: Any) -> None:
        pinging = asyncio.create_task(self._ping(connection))
        try:
            while True:
                message = await connection.read_response(timeout=math.inf)
                self._heard = time.monotonic()
                if message[0] == b"message":
                    self._hear(message[2])
        finally:
            pinging.cancel()

    async def _ping(self, connection: Any) -> None:
        with contextlib.suppress(RedisError, OSError):
            while time.monotonic() - self._heard < 3 * _PING_S:
                await connection.send_command("PING")
                await asyncio.sleep(_PING_S)
        await connection.disconnect(nowait=True)

    def _hear(self, message: bytes) -> None:
        job_id, number, rest = message.split(b"\n", 2)
        follows = self._follows.get(job_id.decode())
        if follows is None:
            return
        # What is sealed may hold any bytes.
        body, found, result = (rest, b"", b"") if rest.startswith(SEALED_PIECE) else rest.partition(b"\n")
        event = Event(int(number), body, result if found else None)
        for follow in follows:
            if event.number == follow.last + 1:
                self._push(follow, event)
            elif event.number > follow.last:
                follow.ahead = event.number
                if follow.live:
                    self._recover(follow)

    def _push(self, follow: Follow, event: Event) -> None:
        """Opened, unless nobody reads it."""
        if not follow.final_only or event.final:
            try:
                result = event.result and self._seals.answer(follow.tenant, follow.job_id, event.result)
                event = Event(event.number, self._seals.event(follow.tenant, follow.job_id, event.body), result)
            except BrokenSeal as error:
                follow.last = event.number
                follow.fail(error)
                return
        follow.push(event)

    def _recover(self, follow: Follow) -> None:
        if follow not in self._recoveries:
            task = asyncio.create_task(self._insist(follow))
            self._recoveries[follow] = task
            task.add_done_callback(lambda _: self._recoveries.pop(follow, None))

    async def _insist(self, follow: Follow) -> None:
        while True:
            try:
                if await self._catch_up(follow) is None:
                    follow.fail(Unavailable("The job is gone from the store; send the request again."))
                return
            except Unavailable:
                await asyncio.sleep(_RETRY_LIMIT_S)

    async def _catch_up(self, follow: Follow) -> JobState | None:
        """Pushes what the job's log has beyond ``follow.last``; ``None`` when there is no such job."""
        while True:
            first = follow.last + 1
            watched = await self._store(transitions.watch(follow.job_id, self.channel, first=first))
            if watched is None:
                return None
            for number, body in enumerate(watched.events, first):
                event = Event(number, body)
                if event.final:
                    event = Event(number, body, await self._result(follow.job_id))
                if number == follow.last + 1:
                    self._push(follow, event)
            if not watched.events or follow.ahead <= follow.last:
                return watched.state

    async def _result(self, job_id: str) -> bytes | None:
        record = await self._store(reads.job(job_id))
        return (record.result or b"") if record else None

    def _leave(self, follow: Follow) -> None:
        follows = self._follows[follow.job_id]
        follows.remove(follow)
        if not follows:
            del self._follows[follow.job_id]
        recovery = self._recoveries.get(follow)
        if recovery is not None:
            recovery.cancel()
