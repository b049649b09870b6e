"""OpenTelemetry traces: what a job's spans are (``spans``), and how they leave the process (``exporting``).

Nothing of OpenTelemetry is imported before ``tracer`` finds in the environment where spans should go.
"""

from __future__ import annotations

from fabric.tracing.spans import Span, batch_span, job_spans, request_span
from fabric.tracing.tracer import Tracer, tracer

__all__ = ["Span", "Tracer", "batch_span", "job_spans", "request_span", "tracer"]
