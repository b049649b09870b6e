"""``POST /v1/chat/completions``, ``/v1/completions`` and ``/v1/embeddings``.

Bare ASGI applications: on the way of every request nothing is done twice, and nothing per token that
can be done per burst.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from contextlib import ExitStack

import orjson
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from fabric.contracts.errors import Conflict, DeadlineExceeded, ErrorInfo, FabricError, NotFound, Unavailable
from fabric.contracts.job import Endpoint
from fabric.contracts.request import InferenceRequest
from fabric.gateway import sse
from fabric.gateway.access import INFERENCE, require
from fabric.gateway.admission import admitted, charged, metered
from fabric.gateway.answer import Chunks, Ending, packed, placement, whole
from fabric.gateway.body import ClientGone, read_body
from fabric.gateway.caller import Caller
from fabric.gateway.edge import STOPPING
from fabric.gateway.follow import Event, Follow
from fabric.gateway.gateway import Gateway
from fabric.gateway.listener import ACCEPTED
from fabric.gateway.presence import Presence
from fabric.gateway.request_trace import RequestTrace, request_trace
from fabric.gateway.responses import Header, JobError, send_json
from fabric.gateway.restoring import Restoring
from fabric.gateway.screening import screened
from fabric.gateway.submission import idempotency_key, new_job, parsed
from fabric.store.transitions import NewJob

#: How long the end of a job may come after its deadline: whoever stops it has to notice first.
_DEADLINE_GRACE_S = 5.0


class Inference:
    def __init__(self, endpoint: Endpoint, gateway: Gateway) -> None:
        self._endpoint = endpoint
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        arrived = time.perf_counter()
        headers = Headers(scope=scope)
        caller = await self._gateway.keyring.caller(headers)
        require(caller, INFERENCE)
        with request_trace(self._gateway.settings.tracer, self._endpoint, headers) as trace:
            body = await read_body(receive, headers, self._gateway.settings.body_limit_bytes)
            visit = await self._visit(
                headers, body, caller, scope, trace.sending(send) if trace else send, arrived, trace
            )
            del body
            try:
                await visit.run(receive)
            finally:
                if trace:
                    trace.job_id = visit.job_id

    async def _visit(
        self,
        headers: Headers,
        body: bytes,
        caller: Caller,
        scope: Scope,
        send: Send,
        arrived: float,
        trace: RequestTrace | None,
    ) -> _Visit:
        gateway = self._gateway
        # Of one moment: another file may count while a long text is searched.
        catalog, hash_ = gateway.catalog, gateway.policy_hash
        key = idempotency_key(headers)
        request = parsed(self._endpoint, body, catalog, caller, gateway.trail)
        job = new_job(
            request,
            caller,
            key,
            privacy=catalog.privacy.default,
            watcher=gateway.listener.channel,
            accepted_under=hash_,
            secrets=gateway.settings.secrets,
            trail=gateway.trail,
        )
        if trace:
            job = trace.traced(job)
        job = await screened(job, request, catalog, caller, gateway.trail)
        job, shadow = admitted(job, headers, catalog, hash_)
        job = metered(charged(job, catalog, caller.permissions), caller, catalog)
        shadow = shadow and charged(shadow, catalog, caller.permissions)
        return _Visit(gateway, request, job, shadow, scope, send, arrived)


class _Visit:
    """One request, from its job's acceptance to the last byte of the answer. It doesn't keep the prompt
    while it waits."""

    def __init__(
        self,
        gateway: Gateway,
        request: InferenceRequest,
        job: NewJob,
        shadow: NewJob | None,
        scope: Scope,
        send: Send,
        arrived: float,
    ) -> None:
        self._gateway = gateway
        self._scope = scope
        self._send = send
        self._arrived = arrived
        self._endpoint = request.endpoint
        self._model = request.model
        self._tenant = job.spec.tenant
        self._usage = request.include_usage
        self._base64 = request.body.get("encoding_format") == "base64"
        self._deadline_ms = job.spec.deadline_ms
        self._shadow = shadow
        self._streams = request.stream
        self._keyed = bool(job.idempotency_key)
        self._job: NewJob | None = job
        self._restoring = Restoring(job.placeholders)
        #: An earlier request's for a repeated idempotency key.
        self._job_id = job.spec.id

    async def run(self, receive: Receive) -> None:
        beat_s = self._gateway.settings.keep_alive_s if self._streams else None
        with Presence(receive, timeout_s=self._timeout_s(), beat_s=beat_s) as presence:
            try:
                with ExitStack() as stack:
                    follow, joined = await self._begin(stack)
                    if self._streams:
                        await self._stream(presence, follow, joined=joined)
                    else:
                        await self._whole(presence, follow)
            except DeadlineExceeded:
                self._gateway.waiters.left(self._job_id, may_return=False)
                raise
            except (ClientGone, Unavailable):
                self._gateway.waiters.left(self._job_id, may_return=self._keyed)
                raise

    @property
    def job_id(self) -> str:
        return self._job_id

    def _timeout_s(self) -> float:
        if self._deadline_ms is None:
            return self._gateway.settings.request_timeout_s
        return self._deadline_ms / 1000 - time.time() + _DEADLINE_GRACE_S

    async def _begin(self, stack: ExitStack) -> tuple[Follow, bool]:
        """Has the job accepted and follows it; whether it is an earlier request's job.

        A client that leaves meanwhile is noticed afterwards: first it must be known what there is to cancel.
        """
        listener, waiters = self._gateway.listener, self._gateway.waiters
        job, self._job = self._job, None
        assert job is not None
        final_only = not self._streams
        follow = stack.enter_context(listener.follow(self._job_id, self._tenant, after=ACCEPTED, final_only=final_only))
        if self._keyed:
            stack.enter_context(waiters.waiting(self._job_id))
        await self._gateway.outlook.check(job.spec)
        known = await self._gateway.accept(job, self._scope)
        del job
        if known == self._job_id:
            if self._shadow is not None:
                self._gateway.shadows.send(self._shadow)
                self._shadow = None
            listener.confirm(follow)
            return follow, False
        self._job_id = known
        self._restoring = await self._gateway.restoring(self._tenant, known)
        stack.enter_context(waiters.waiting(known))
        follow = stack.enter_context(listener.follow(known, self._tenant, final_only=final_only))
        try:
            state = await listener.join(follow)
        except NotFound:
            raise Conflict(
                "The answer to this Idempotency-Key isn't kept any more. Use a new key.", code="answer_expired"
            ) from None
        follow.only_last_run(ended=state.ended)
        return follow, True

    async def _whole(self, presence: Presence, follow: Follow) -> None:
        event = (await presence.read(follow))[0]  # of a `final_only` follow
        ending = Ending.of(event)
        headers = ending.headers(self._job_id)
        if ending.error is not None:
            raise JobError(ending.error, headers)
        if event.result is None:
            raise Unavailable("The answer is gone from the store; send the request again.")
        result = packed(event.result) if self._base64 else self._restoring.result(event.result)
        body = whole(self._endpoint, self._job_id, self._model, ending.accepted_ms // 1000, result)
        await send_json(self._send, 200, body, headers)

    async def _stream(self, presence: Presence, follow: Follow, *, joined: bool) -> None:
        """The status waits for the first token: what fails before it gets a status of its own."""
        placing = Placing(None if joined else _now_ms())
        chunks: Chunks | None = None
        try:
            while True:
                events, ending = _until_end(self._restoring.events(await presence.read(follow)))
                tokens = [event for event in events if event.token]
                if chunks is None:
                    placing.learn(events)
                    if not tokens and ending is None:
                        continue
                    if not tokens and ending is not None and ending.error is not None:
                        raise JobError(ending.error, ending.headers(self._job_id))
                    if tokens:
                        self._gateway.metrics.first_token_seconds.observe(time.perf_counter() - self._arrived)
                    created = placing.queued_ms // 1000
                    chunks = Chunks(self._endpoint, self._job_id, self._model, created, usage=self._usage)
                    await sse.begin(self._send, placing.headers(self._job_id))
                data = b"".join(map(chunks.chunk, tokens))
                if ending is not None:
                    if ending.error is not None:
                        self._gateway.metrics.errors.labels(ending.error.fault).inc()
                    await sse.end(self._send, data + chunks.end(ending))
                    return
                await sse.say(self._send, data or sse.KEEP_ALIVE)
        except FabricError as error:
            if chunks is not None:
                await sse.end(self._send, _last_word(error.info))
            raise
        except asyncio.CancelledError:
            if chunks is not None:
                await sse.end(self._send, _last_word(STOPPING))
            raise


class Placing:
    """Where a job runs and how long it waited, as far as its events say."""

    def __init__(self, queued_ms: int | None) -> None:
        """``queued_ms``: on this machine's clock, for a job whose first event was not seen. Otherwise the
        store's clock is read off the events: the two are never mixed."""
        self._here = queued_ms is not None
        self.queued_ms = queued_ms or 0
        self._running_ms = self.queued_ms
        self._tier = self._deployment = "none"
        self._attempt = 0

    def learn(self, events: Iterable[Event]) -> None:
        for event in events:
            if event.token or event.final:
                continue
            values = orjson.loads(event.body)
            match values["type"]:
                case "queued":
                    self.queued_ms = values["at"]
                case "dispatched":
                    self._tier, self._deployment = values["tier"], values["deployment"]
                    self._attempt = values["number"]
                case "running":
                    self._running_ms = _now_ms() if self._here else values["at"]

    def headers(self, job_id: str) -> list[Header]:
        waited_ms = max(0, self._running_ms - self.queued_ms)
        return placement(job_id, self._tier, self._deployment, self._attempt, waited_ms)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _until_end(events: list[Event]) -> tuple[list[Event], Ending | None]:
    for index, event in enumerate(events):
        if event.final:
            return events[: index + 1], Ending.of(event)
    return events, None


def _last_word(error: ErrorInfo) -> bytes:
    return b"data: " + orjson.dumps(error.body()) + b"\n\n"
