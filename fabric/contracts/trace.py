"""Where a job stands in a distributed trace: W3C Trace Context, kept in the job's spec. Pure.

A span's id is made from its job, its part and its attempt. So whoever tells of a part later names the same span, and
nothing has to be remembered or sent in between: a worker gives its engine the id of a span that the recorder exports.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from fabric.contracts.errors import ConfigError

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16
#: The part of a batch's lines that is traced, of the part of all requests that is: 50,000 spans of one batch tell
#: no more than 500.
LINES: Final = 0.01


@dataclass(frozen=True, slots=True)
class TraceContext:
    """``trace_id``: 32, ``span_id``: 16 hexadecimal digits. ``sampled``: whether somebody keeps its spans."""

    trace_id: str
    span_id: str
    sampled: bool = True

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"


def parse_traceparent(text: str | None) -> TraceContext | None:
    """``None`` for what the specification says to ignore."""
    found = _TRACEPARENT.fullmatch(text) if text is not None and len(text) <= 256 else None
    if found is None:
        return None
    version, trace_id, span_id, flags, rest = found.groups()
    if version == "ff" or (version == "00" and rest) or trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    return TraceContext(trace_id, span_id, bool(int(flags, 16) & 1))


def span_id(job_id: str, part: str, attempt: int = 0) -> str:
    """Of one part of a job. Lines and jobs have ids of their own, so no two spans share one."""
    return blake2b(f"{job_id} {part} {attempt}".encode(), digest_size=8).hexdigest()


def run_span(trace: str, job_id: str, attempt: int) -> str | None:
    """``traceparent`` for the engine that runs an attempt. ``trace``: as in the job's spec."""
    parent = parse_traceparent(trace)
    return None if parent is None else TraceContext(parent.trace_id, span_id(job_id, "run", attempt)).traceparent


def batch_context(batch_id: str) -> TraceContext:
    """Of the span that a batch's lines are linked to."""
    return TraceContext(blake2b(batch_id.encode(), digest_size=16).hexdigest(), span_id(batch_id, "batch"))


@dataclass(frozen=True, slots=True)
class Sampler:
    """Which traces are kept. ``ratio``: the part of them, 0 to 1, told from the trace's id, so that all who use the
    same ratio agree. ``parent_based``: whoever began a trace has decided already."""

    ratio: float = 1.0
    parent_based: bool = True

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Sampler:
        """``OTEL_TRACES_SAMPLER`` and ``OTEL_TRACES_SAMPLER_ARG``.

        Raises:
            ConfigError: there is no such sampler, or the ratio is none.
        """
        name = environ.get("OTEL_TRACES_SAMPLER", "").strip().lower() or "parentbased_always_on"
        kind = name.removeprefix("parentbased_")
        if kind not in ("always_on", "always_off", "traceidratio"):
            raise ConfigError(
                "OTEL_TRACES_SAMPLER must be always_on, always_off or traceidratio, also with parentbased_ before it."
            )
        if kind != "traceidratio":
            return cls(float(kind == "always_on"), kind != name)
        try:
            ratio = float(environ.get("OTEL_TRACES_SAMPLER_ARG", "").strip() or 1.0)
        except ValueError:
            ratio = -1.0
        if not 0 <= ratio <= 1:
            raise ConfigError("OTEL_TRACES_SAMPLER_ARG must be a number from 0 to 1.")
        return cls(ratio, kind != name)

    def keeps(self, trace_id: str, part: float = 1.0) -> bool:
        return int(trace_id[16:], 16) < self.ratio * part * 2**64

    def begin(self, parent: TraceContext | None) -> TraceContext | None:
        """The span of a request under ``parent``, if it is kept."""
        trace_id = parent.trace_id if parent else secrets.token_hex(16)
        kept = parent.sampled if parent and self.parent_based else self.keeps(trace_id)
        return TraceContext(trace_id, secrets.token_hex(8)) if kept else None

    def line(self, job_id: str) -> str | None:
        """A batch line's place in a trace of its own: the same each time that it is fed."""
        trace_id = blake2b(job_id.encode(), digest_size=16).hexdigest()
        return TraceContext(trace_id, span_id(job_id, "line")).traceparent if self.keeps(trace_id, LINES) else None
