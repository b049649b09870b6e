"""``GET /v1/jobs/{id}/events``: the job's log as it grows."""

from __future__ import annotations

import asyncio

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fabric.contracts.errors import FabricError, InvalidRequest
from fabric.gateway import sse
from fabric.gateway.gateway import Gateway
from fabric.gateway.presence import Presence
from fabric.store import reads


class JobEvents(Response):
    """Ends after the job's last event. When it breaks off earlier, a reader asks again behind what it has."""

    def __init__(self, gateway: Gateway, tenant: str, job_id: str, after: int) -> None:
        super().__init__()
        self._gateway = gateway
        self._tenant = tenant
        self._job_id = job_id
        self._after = after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gateway = self._gateway
        newest = await gateway.ask(reads.event_count(self._job_id))
        if self._after > newest:
            raise InvalidRequest("`Last-Event-ID` must be the id of an event of this job.", param="Last-Event-ID")
        restoring = await gateway.restoring(self._tenant, self._job_id)
        begun = False
        with (
            # A placeholder may be cut by the event that the reader has last.
            gateway.listener.follow(self._job_id, self._tenant, after=0 if restoring.needed else self._after) as follow,
            Presence(receive, beat_s=gateway.settings.keep_alive_s) as presence,
        ):
            try:
                state = await gateway.listener.join(follow)
                await sse.begin(send, [])
                begun = True
                if state.ended and follow.last == self._after:
                    await sse.end(send)
                    return
                while True:
                    events = restoring.events(await presence.read(follow), after=self._after)
                    data = b"".join(sse.frame(event.number, event.body) for event in events)
                    if events and events[-1].final:
                        await sse.end(send, data)
                        return
                    await sse.say(send, data or sse.KEEP_ALIVE)
            except (FabricError, asyncio.CancelledError):
                # The reader asks again: every event has its number.
                if begun:
                    await sse.end(send)
                raise
