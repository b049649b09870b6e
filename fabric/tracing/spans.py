"""The spans of a job, from what its completion says. Pure.

    POST /v1/chat/completions                 the gateway's, or the caller's own above it
      fabric.job                              from its acceptance to its commit
        fabric.queued                         in the backlog, until it was decided
        fabric.dispatched                     in its tier's queue, until a worker claimed it
        chat MODEL                            in the engine; one for each attempt, side by side

Names and attributes of ``gen_ai`` follow OpenTelemetry's semantic conventions for generative AI. No text of prompts
or answers, no key, no tag and no name that a caller chose is ever in one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from fabric.contracts.completion import Completion
from fabric.contracts.job import Endpoint, JobSpec, JobState, Measures
from fabric.contracts.trace import TraceContext, batch_context, parse_traceparent, span_id

Kind = Literal["internal", "server", "client"]
Value = str | int | float | bool | tuple[str, ...]

OPERATIONS: dict[Endpoint, str] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
_CODE = re.compile(r"[A-Za-z0-9_]{1,64}")


@dataclass(frozen=True, slots=True)
class Span:
    """Times: nanoseconds since the epoch. ``error``: its code. ``events``: name and time."""

    name: str
    context: TraceContext
    parent: TraceContext | None
    start_ns: int
    end_ns: int
    kind: Kind = "internal"
    attributes: dict[str, Value] = field(default_factory=dict)
    events: tuple[tuple[str, int], ...] = ()
    links: tuple[TraceContext, ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True)
class _Try:
    number: int
    deployment: str | None
    tier: str | None
    worker: str | None
    outcome: str
    dispatched_ms: int | None
    claimed_ms: int | None
    ended_ms: int
    measures: Measures
    error: str | None


def job_spans(done: Completion, engines: Mapping[str, str]) -> list[Span]:
    """None of a job that isn't traced. ``engines``: deployment -> engine. What an earlier end of the same job
    (before its replay) has told isn't told again."""
    spec = done.spec
    parent = parse_traceparent(spec.trace)
    if parent is None or done.late:
        return []
    tries = _tries(done)
    first = tries[0].number if tries else 0
    job = TraceContext(parent.trace_id, span_id(spec.id, "job", first))
    replayed_ms = next((e.ended_ms for e in reversed(done.earlier) if e.outcome == JobState.DEAD), None)
    since = done.accepted_ms if replayed_ms is None else replayed_ms
    events = [("accepted", _ns(since))]
    spans: list[Span] = []
    for one in tries:
        if one.dispatched_ms is not None:
            events.append(("decided", _ns(one.dispatched_ms)))
        spans += _stages(spec, one, job, since, engines)
        since = one.ended_ms
    if not tries:
        spans.append(_span("fabric.queued", spec, job, 0, since, done.finished_ms))
    events.append(("committed", _ns(done.finished_ms)))
    whole = Span(
        "fabric.job",
        job,
        None if spec.batch_id else parent,
        events[0][1],
        max(events[0][1], _ns(done.finished_ms)),
        attributes=_about(done),
        events=tuple(events),
        links=(batch_context(spec.batch_id),) if spec.batch_id else (),
        error=None if done.state == JobState.SUCCEEDED else _code(done.error) or str(done.state),
    )
    return [whole, *spans]


def request_span(
    route: str, context: TraceContext, parent: TraceContext | None, start_ns: int, end_ns: int, status: int, job_id: str
) -> Span:
    """Of one HTTP request. ``status``: what was answered, 499 where nobody waited for it."""
    attributes: dict[str, Value] = {
        "http.request.method": "POST",
        "http.route": route,
        "http.response.status_code": status,
    }
    if job_id:
        attributes["fabric.job.id"] = job_id
    error = str(status) if status >= 500 else None
    return Span(f"POST {route}", context, parent, start_ns, end_ns, "server", attributes, error=error)


def batch_span(batch_id: str, request: TraceContext, start_ns: int, end_ns: int) -> Span:
    """The acceptance of a batch, which its lines are linked to."""
    return Span(
        "fabric.batch",
        batch_context(batch_id),
        None,
        start_ns,
        end_ns,
        attributes={"fabric.batch.id": batch_id},
        links=(request,),
    )


def _tries(done: Completion) -> list[_Try]:
    tries: list[_Try] = []
    for e in done.earlier:
        tries.append(
            _Try(
                e.number,
                e.deployment,
                e.tier,
                e.worker,
                e.outcome,
                e.dispatched_ms,
                e.claimed_ms,
                e.ended_ms,
                e.measures,
                _code(e.error),
            )
        )
        if e.outcome == JobState.DEAD:
            tries.clear()
    if done.attempt and done.attempt not in {one.number for one in tries}:
        error = None if done.state == JobState.SUCCEEDED else _code(done.error) or str(done.state)
        tries.append(
            _Try(
                done.attempt,
                done.deployment,
                done.tier,
                done.worker,
                str(done.state),
                done.dispatched_ms,
                done.claimed_ms,
                done.finished_ms,
                done.measures,
                error,
            )
        )
    return tries


def _stages(spec: JobSpec, one: _Try, job: TraceContext, since_ms: int, engines: Mapping[str, str]) -> list[Span]:
    if one.dispatched_ms is None:
        return []
    spans = [
        _span("fabric.queued", spec, job, one.number, since_ms, one.dispatched_ms),
        _span("fabric.dispatched", spec, job, one.number, one.dispatched_ms, one.claimed_ms or one.ended_ms),
    ]
    if one.claimed_ms is None:
        return spans
    operation = OPERATIONS[spec.endpoint]
    attributes = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": engines.get(one.deployment or "", ""),
        "gen_ai.request.model": spec.model,
        "fabric.job.id": spec.id,
        "fabric.attempt": one.number,
        "fabric.deployment": one.deployment or "",
        "fabric.tier": one.tier or "",
        "fabric.worker": one.worker or "",
        "fabric.outcome": one.outcome,
        **_measured(spec, one.measures),
    }
    start, end = _ns(one.claimed_ms), max(_ns(one.claimed_ms), _ns(one.ended_ms))
    events: tuple[tuple[str, int], ...] = ()
    if one.measures.first_token_s is not None:
        first = start + int((one.measures.gate_s + one.measures.first_token_s) * 1e9)
        events = (("first_token", min(first, end)),)
    context = TraceContext(job.trace_id, span_id(spec.id, "run", one.number))
    failed = None if one.outcome == JobState.SUCCEEDED else one.error or one.outcome
    name = f"{operation} {spec.model}"
    kept = {key: value for key, value in attributes.items() if value != ""}
    return [*spans, Span(name, context, job, start, end, "client", kept, events, error=failed)]


def _measured(spec: JobSpec, measures: Measures) -> dict[str, Value]:
    usage = measures.usage
    values: dict[str, Value] = {"gen_ai.response.model": measures.served_model, "gen_ai.request.stream": spec.stream}
    if usage.total_tokens:
        values["gen_ai.usage.input_tokens"] = usage.input_tokens
        values["gen_ai.usage.output_tokens"] = usage.output_tokens
        values["gen_ai.usage.cache_read.input_tokens"] = usage.cached_input_tokens
        values["fabric.usage.estimated"] = usage.estimated
    if spec.max_output_tokens is not None:
        values["gen_ai.request.max_tokens"] = spec.max_output_tokens
    if measures.finish_reasons:
        values["gen_ai.response.finish_reasons"] = measures.finish_reasons
    if measures.cost_usd:
        values["fabric.cost_usd"] = measures.cost_usd
    return values


def _about(done: Completion) -> dict[str, Value]:
    spec = done.spec
    about: dict[str, Value] = {
        "fabric.job.id": spec.id,
        "fabric.endpoint": spec.endpoint,
        "fabric.priority": spec.priority,
        "fabric.privacy": spec.privacy,
        "fabric.outcome": str(done.state),
        "fabric.attempts": max(0, done.attempt),
        "gen_ai.request.model": spec.model,
    }
    if spec.batch_id is not None and spec.line_no is not None:
        about["fabric.batch.id"], about["fabric.batch.line"] = spec.batch_id, spec.line_no
    if spec.shadow_of is not None:
        about["fabric.shadow_of"] = spec.shadow_of
    return about


def _span(name: str, spec: JobSpec, job: TraceContext, number: int, start_ms: int, end_ms: int) -> Span:
    context = TraceContext(job.trace_id, span_id(spec.id, name, number))
    attributes: dict[str, Value] = {"fabric.job.id": spec.id, "fabric.attempt": number}
    return Span(name, context, job, _ns(start_ms), max(_ns(start_ms), _ns(end_ms)), attributes=attributes)


def _code(error: bytes | dict[str, Any] | None) -> str | None:
    """Providers have codes of their own: one that is no word might be text."""
    if not error:
        return None
    values = orjson.loads(error) if isinstance(error, bytes) else error
    code = values.get("code")
    return code if isinstance(code, str) and _CODE.fullmatch(code) else "other"


def _ns(ms: int) -> int:
    return ms * 1_000_000
