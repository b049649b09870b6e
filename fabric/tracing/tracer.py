"""From the environment to a tracer, or to none."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from fabric.contracts.trace import Sampler
from fabric.tracing.spans import Span

log = logging.getLogger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


@dataclass(frozen=True, slots=True)
class Tracer:
    """``export`` takes finished spans; it neither waits nor raises. ``close`` waits for the last ones, not long."""

    sampler: Sampler
    export: Callable[[Iterable[Span]], None]
    close: Callable[[], None] = lambda: None


def tracer(environ: Mapping[str, str], process: str) -> Tracer | None:
    """``None`` where the ``OTEL_*`` variables name no place for spans, or switch them off. ``process``: its part of
    the fabric.

    Raises:
        ConfigError: a variable is wrong.
    """
    off = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    exporters = environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() or "otlp"
    if off or exporters == "none" or not any(environ.get(name, "").strip() for name in _ENDPOINTS):
        return None
    sampler = Sampler.of(environ)
    if exporters != "otlp":
        log.warning("OTEL_TRACES_EXPORTER: only otlp and none are known here; there are no traces")
        return None
    try:
        from fabric.tracing.exporting import Exporter
    except ImportError:
        log.warning("OTEL_EXPORTER_OTLP_ENDPOINT is set, but the extra isn't installed: inference-fabric[otel]")
        return None
    exporter = Exporter(process)
    return Tracer(sampler, exporter.export, exporter.close)
