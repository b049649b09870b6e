"""Whether somebody still waits for an answer: the client is there, and its time isn't up."""

from __future__ import annotations

import asyncio
from types import TracebackType

from starlette.types import Receive

from fabric.contracts.errors import DeadlineExceeded
from fabric.gateway.body import ClientGone
from fabric.gateway.follow import Event, Follow


class Presence:
    """Reads a follow for a request, and stops reading when there is no point any more.

    ``beat_s``: a reader that heard nothing for so long gets an empty list, to say something itself.
    """

    __slots__ = ("_beat_s", "_beating", "_follow", "_gone", "_late", "_listening", "_receive", "_timeout_s", "_timer")

    def __init__(self, receive: Receive, *, timeout_s: float | None = None, beat_s: float | None = None) -> None:
        self._receive = receive
        self._timeout_s = timeout_s
        self._beat_s = beat_s
        self._gone = False
        self._late = False
        self._follow: Follow | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._beating: asyncio.TimerHandle | None = None

    def __enter__(self) -> Presence:
        loop = asyncio.get_running_loop()
        self._listening = loop.create_task(self._listen())
        if self._timeout_s is not None:
            self._timer = loop.call_later(self._timeout_s, self._expire)
        if self._beat_s is not None:
            self._beating = loop.call_later(self._beat_s, self._beat, loop, self._beat_s)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listening.cancel()
        for timer in (self._timer, self._beating):
            if timer is not None:
                timer.cancel()

    async def read(self, follow: Follow) -> list[Event]:
        """Everything new; empty when it has been silent for a while.

        Raises:
            ClientGone: nobody waits for the answer.
            DeadlineExceeded: the time is up.
            FabricError: what made the follow fail.
        """
        self._follow = follow
        while True:
            if self._gone:
                raise ClientGone
            if self._late:
                raise DeadlineExceeded("The answer wasn't there in time, so the job was cancelled.")
            events = await follow.read()
            if events or (self._beat_s is not None and not self._gone and not self._late):
                return events

    async def _listen(self) -> None:
        # The body has been read: what else a server tells is that the client went away.
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        self._nudge()

    def _expire(self) -> None:
        self._late = True
        self._nudge()

    def _beat(self, loop: asyncio.AbstractEventLoop, beat_s: float) -> None:
        self._nudge()
        self._beating = loop.call_later(beat_s, self._beat, loop, beat_s)

    def _nudge(self) -> None:
        if self._follow is not None:
            self._follow.nudge()
