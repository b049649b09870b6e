from __future__ import annotations

import subprocess
import sys

import pytest

from fabric.tracing import tracer

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}


@pytest.mark.parametrize(
    "environ", [{}, {**ENDPOINT, "OTEL_SDK_DISABLED": "true"}, {**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}]
)
def test_who_isnt_told_where_to_send_spans_has_no_tracer(environ: dict[str, str]) -> None:
    assert tracer(environ, "api") is None


def test_the_processes_import_nothing_of_it_unless_told_to() -> None:
    code = (
        "import sys; import fabric.gateway.app, fabric.recorder, workers.runtime; from fabric.tracing import tracer\n"
        "assert tracer({}, 'api') is None\n"
        "assert 'fabric.tracing.exporting' not in sys.modules\n"
        "heavy = ('opentelemetry.sdk.trace', 'opentelemetry.exporter')\n"
        "assert not [name for name in sys.modules if name.startswith(heavy)]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_without_the_extra_it_is_said_and_nothing_else_happens(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    monkeypatch.delitem(sys.modules, "fabric.tracing.exporting", raising=False)
    assert tracer(ENDPOINT, "api") is None
    assert "inference-fabric[otel]" in caplog.text
