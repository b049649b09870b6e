"""A collector that is away is said to be, once."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from fabric.tracing.exporting import _Telling


class Collector(SpanExporter):
    def __init__(self) -> None:
        self.result = SpanExportResult.SUCCESS

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return self.result

    def shutdown(self) -> None: ...


def test_once_when_it_goes_and_once_when_it_is_back(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fabric.tracing.exporting")
    collector = Collector()
    telling = _Telling(collector)
    said: list[int] = []
    for result in (SpanExportResult.SUCCESS, *[SpanExportResult.FAILURE] * 3, *[SpanExportResult.SUCCESS] * 2):
        collector.result = result
        assert telling.export([]) is result
        said.append(len(caplog.records))
    assert said == [0, 1, 1, 1, 2, 2]
    assert "spans are lost" in caplog.records[0].getMessage()
