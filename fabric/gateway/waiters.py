"""Stops jobs that nobody waits for any more."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Iterator

from fabric.contracts.errors import Unavailable
from fabric.store import AsyncStore, reads, transitions

log = logging.getLogger(__name__)

_AWAY_S = 0.2
#: Cancellations in one call.
_CHUNK = 128


class Waiters:
    """Knows how many requests of this gateway wait for a job, and cancels it when the last one left.

    Who gave an Idempotency-Key may come back for the answer, also through another gateway: such a job
    is given ``return_s`` first.
    """

    def __init__(self, store: AsyncStore, channel: str, *, return_s: float) -> None:
        self._store = store
        self._channel = channel
        self._return_s = return_s
        self._waiting: Counter[str] = Counter()
        self._expected: dict[str, asyncio.TimerHandle] = {}
        self._leaving: set[str] = set()
        self._sender: asyncio.Task[None] | None = None
        self._looks: set[asyncio.Task[None]] = set()

    @property
    def busy(self) -> int:
        """Jobs about which it isn't decided yet, or not sent, that nobody waits for them."""
        return len(self._expected) + len(self._looks) + len(self._leaving)

    @contextlib.contextmanager
    def waiting(self, job_id: str) -> Iterator[None]:
        self._waiting[job_id] += 1
        try:
            yield
        finally:
            self._waiting[job_id] -= 1
            if not self._waiting[job_id]:
                del self._waiting[job_id]

    def left(self, job_id: str, *, may_return: bool) -> None:
        """A request went away without its answer. Called after its ``waiting`` is over."""
        if job_id in self._waiting:
            return
        if not may_return:
            self._cancel(job_id)
        elif job_id not in self._expected:
            loop = asyncio.get_running_loop()
            self._expected[job_id] = loop.call_later(self._return_s, self._did_not_return, job_id)

    async def close(self) -> None:
        """Sends what is left to be sent, if the store takes it now. Who may come back finds the job."""
        for timer in self._expected.values():
            timer.cancel()
        self._expected.clear()
        for task in [*self._looks, *([self._sender] if self._sender else [])]:
            task.cancel()
        with contextlib.suppress(Unavailable):
            while self._leaving:
                await self._send_some()

    def _did_not_return(self, job_id: str) -> None:
        del self._expected[job_id]
        if job_id not in self._waiting:
            task = asyncio.create_task(self._cancel_unless_watched(job_id))
            self._looks.add(task)
            task.add_done_callback(self._looks.discard)

    async def _cancel_unless_watched(self, job_id: str) -> None:
        """Another gateway that watches the job may have a client that waits for it: then it goes on."""
        while True:
            try:
                watchers = await self._store(reads.watchers(job_id))
                break
            except Unavailable:
                await asyncio.sleep(_AWAY_S)
        if job_id not in self._waiting and set(watchers) <= {self._channel}:
            self._cancel(job_id)

    def _cancel(self, job_id: str) -> None:
        self._leaving.add(job_id)
        if self._sender is None:
            self._sender = asyncio.create_task(self._send())

    async def _send(self) -> None:
        try:
            while self._leaving:
                try:
                    await self._send_some()
                except Unavailable:
                    await asyncio.sleep(_AWAY_S)
        finally:
            self._sender = None

    async def _send_some(self) -> None:
        chunk = [job_id for job_id, _ in zip(self._leaving, range(_CHUNK), strict=False)]
        if chunk:
            await self._store(transitions.cancel(chunk))
            self._leaving.difference_update(chunk)
