"""``fabric verify`` on what it can't verify; what it finds out is in ``tests/e2e/test_verify.py``."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from fabric.cli.entry import run

PLACE = {"name": "idle", "model": "m", "engine": "vllm", "context_window": 4096, "capabilities": ["chat"], "workers": 0}


class Tiers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps({"data": [{"tier": "gpu", "deployments": [PLACE]}]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Silent."""


@pytest.fixture(autouse=True)
def fabric(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = HTTPServer(("127.0.0.1", 0), Tiers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("FABRIC_URL", f"http://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    server.server_close()


def test_nobody_works_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", "idle"]) == 1
    assert "No worker serves 'idle': start one with `fabric worker gpu`." in capsys.readouterr().err


def test_there_is_no_such_deployment(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", "other"]) == 1
    assert "There is no deployment 'other'; there are: idle." in capsys.readouterr().err
