"""Spans as OpenTelemetry's, sent in the background to a collector by OTLP over HTTP.

What a full queue or a collector that is away can't take is dropped: a trace never costs a job anything. Where spans
go, with which headers, and how large the queue is, is read by the SDK from ``OTEL_EXPORTER_OTLP_*`` and ``OTEL_BSP_*``.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Sequence

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from fabric.contracts.trace import TraceContext
from fabric.tracing.spans import Kind, Span

log = logging.getLogger(__name__)

_SCOPE = InstrumentationScope("fabric")
_KINDS: dict[Kind, SpanKind] = {
    "internal": SpanKind.INTERNAL,
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
}
#: How long the end of a process waits for its last spans.
_CLOSE_S = 2.0


class _Telling(SpanExporter):
    """Says once that the collector is away, and once that it is back."""

    def __init__(self, inner: SpanExporter) -> None:
        self._inner = inner
        self._away = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._inner.export(spans)
        away = result is not SpanExportResult.SUCCESS
        if away and not self._away:
            log.warning("the collector of traces can't be reached or refuses them: spans are lost until it is back")
        elif self._away and not away:
            log.info("the collector of traces is back")
        self._away = away
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._inner.force_flush(timeout_millis)


class Exporter:
    """For any thread."""

    def __init__(self, process: str) -> None:
        named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "inference-fabric"}
        self._resource = Resource.create({**named, "fabric.process": process})
        self._processor = BatchSpanProcessor(_Telling(OTLPSpanExporter()))
        # The exporter complains at each try; that spans are lost is said by ``_Telling``, once.
        for name in ("opentelemetry.exporter.otlp.proto.http.trace_exporter", "opentelemetry.sdk._shared_internal"):
            logging.getLogger(name).setLevel(logging.CRITICAL)

    def export(self, spans: Iterable[Span]) -> None:
        for span in spans:
            try:
                self._processor.on_end(self._made(span))
            except Exception as error:  # noqa: BLE001 - whatever the SDK says, no job may suffer
                log.debug("a span is lost: %s", type(error).__name__)

    def close(self) -> None:
        ending = threading.Thread(target=self._processor.shutdown, name="last spans", daemon=True)
        ending.start()
        ending.join(_CLOSE_S)

    def _made(self, span: Span) -> ReadableSpan:
        attributes = dict(span.attributes)
        if span.error is not None:
            attributes["error.type"] = span.error
        return ReadableSpan(
            name=span.name,
            context=_context(span.context),
            parent=None if span.parent is None else _context(span.parent, remote=span.kind == "server"),
            resource=self._resource,
            attributes=attributes,
            events=[Event(name, timestamp=at) for name, at in span.events],
            links=[Link(_context(link)) for link in span.links],
            kind=_KINDS[span.kind],
            status=Status(StatusCode.UNSET if span.error is None else StatusCode.ERROR),
            start_time=span.start_ns,
            end_time=span.end_ns,
            instrumentation_scope=_SCOPE,
        )


def _context(context: TraceContext, *, remote: bool = False) -> SpanContext:
    return SpanContext(int(context.trace_id, 16), int(context.span_id, 16), remote, TraceFlags(TraceFlags.SAMPLED))
