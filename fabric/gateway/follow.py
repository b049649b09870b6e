"""A job's events as they come to one reader, in order, each once."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

_TYPE = b'{"type":"'
_FINAL = tuple(_TYPE + state + b'"' for state in (b"succeeded", b"failed", b"cancelled", b"expired", b"dead"))
_TOKEN = _TYPE + b'token"'


@dataclass(frozen=True, slots=True)
class Event:
    """``body`` is one line of JSON. ``result`` comes with the final event; ``None``: not sent along."""

    number: int
    body: bytes
    result: bytes | None = None

    @property
    def final(self) -> bool:
        return self.body.startswith(_FINAL)

    @property
    def token(self) -> bool:
        return self.body.startswith(_TOKEN)


class Follow:
    """``last`` is the number of the newest event that the reader has, or that waits for it.

    ``final_only`` readers are woken by the final event alone.
    """

    __slots__ = ("_events", "_failure", "_waiter", "ahead", "epoch", "final_only", "job_id", "last", "live", "tenant")

    def __init__(self, job_id: str, tenant: str, *, after: int = 0, final_only: bool = False, epoch: int = 0) -> None:
        self.job_id = job_id
        self.tenant = tenant
        self.last = after
        self.final_only = final_only
        #: Whether the store knows the job: only then may a lost connection be made good by reading it.
        self.live = False
        #: The newest event known to exist; beyond ``last`` when some were missed.
        self.ahead = after
        #: The listener's connection when the follow began.
        self.epoch = epoch
        self._events: list[Event] = []
        self._failure: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None

    def push(self, event: Event) -> None:
        self.last = event.number
        if not self.final_only or event.final:
            self._events.append(event)
            self.nudge()

    def only_last_run(self, *, ended: bool) -> None:
        """Drops what was said before a replay: the ends that didn't last. ``ended``: whether the job has now."""
        runs = self._events[:-1] if ended else self._events
        for index in range(len(runs) - 1, -1, -1):
            if runs[index].final:
                del self._events[: index + 1]
                return

    def fail(self, failure: BaseException) -> None:
        """Ends the reading: what came before is still read."""
        if self._failure is None:
            self._failure = failure
            self.nudge()

    def nudge(self) -> None:
        """Wakes the reader, with nothing if there is nothing."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def read(self) -> list[Event]:
        """Everything new; waits for it. Empty after a nudge.

        Raises:
            BaseException: what ``fail`` was given.
        """
        if not self._events and self._failure is None:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._events:
            events, self._events = self._events, []
            return events
        if self._failure is not None:
            raise self._failure
        return []

    async def final(self) -> Event:
        """The event that ends the job; earlier ones are dropped."""
        while True:
            for event in await self.read():
                if event.final:
                    return event
