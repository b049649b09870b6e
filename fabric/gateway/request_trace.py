"""The span of a request that makes a job: begun under the caller's own, told when it was answered."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Message, Send

from fabric.contracts.errors import FabricError
from fabric.contracts.trace import TraceContext, parse_traceparent
from fabric.gateway.body import ClientGone
from fabric.gateway.responses import JobError
from fabric.store.transitions import NewJob
from fabric.tracing import Tracer, batch_span, request_span


class RequestTrace:
    """``with`` it around the work. ``traceparent`` is read of callers who may use the route, after they have been found
    out; their ``tracestate`` and ``baggage`` aren't: those are texts of theirs."""

    def __init__(self, tracer: Tracer, route: str, headers: Headers, status: int) -> None:
        """``status``: of an answer that this isn't told of."""
        self._tracer = tracer
        self._route = route
        self._parent = parse_traceparent(headers.get("traceparent"))
        self._context: TraceContext | None = tracer.sampler.begin(self._parent)
        self._start_ns = time.time_ns()
        self._answers = status
        self._status = 0
        #: The job that the answer is of.
        self.job_id = ""
        #: The batch that the request has made.
        self.batch_id = ""

    def __enter__(self) -> RequestTrace:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._context is None:
            return
        end_ns = time.time_ns()
        status = self._status or (self._answers if error is None else _status_of(error))
        spans = [request_span(self._route, self._context, self._parent, self._start_ns, end_ns, status, self.job_id)]
        if self.batch_id:
            spans.append(batch_span(self.batch_id, self._context, self._start_ns, end_ns))
        self._tracer.export(spans)

    def traced(self, job: NewJob) -> NewJob:
        """``job`` as a part of this trace."""
        if self._context is None:
            return job
        self.job_id = job.spec.id
        return replace(job, spec=replace(job.spec, trace=self._context.traceparent))

    def sending(self, send: Send) -> Send:
        """``send`` that keeps the status."""
        if self._context is None:
            return send

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._status = message["status"]
            await send(message)

        return noted


def request_trace(
    tracer: Tracer | None, route: str, headers: Headers, *, status: int = 200
) -> AbstractContextManager[RequestTrace | None]:
    return nullcontext() if tracer is None else RequestTrace(tracer, route, headers, status)


def _status_of(error: BaseException) -> int:
    """As ``Edge`` answers it."""
    if isinstance(error, JobError):
        return error.info.status
    if isinstance(error, FabricError):
        return error.status
    return 499 if isinstance(error, ClientGone | ClientDisconnect) else 500
