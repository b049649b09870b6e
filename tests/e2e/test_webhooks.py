"""A batch and a job end, and who wants to know is told, by the processes as they run."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import openai
import orjson
import pytest

if TYPE_CHECKING:
    from tests.e2e.conftest import Fabric

SECRET = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
LINE = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions"}
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "CANARY-7"}]}


@pytest.fixture
def told() -> Iterator[tuple[str, list[tuple[dict[str, str], bytes]], threading.Event]]:
    """Where to, what came, and whether a batch was among it."""
    came: list[tuple[dict[str, str], bytes]] = []
    batch = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            came.append((dict(self.headers.items()), body))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()
            if {orjson.loads(seen)["type"] for _, seen in came} >= {"batch.completed", "job.succeeded"}:
                batch.set()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/", came, batch
        server.shutdown()


def test_ends_are_told(
    fresh: Fabric,
    told: tuple[str, list[tuple[dict[str, str], bytes]], threading.Event],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, came, both = told
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    config = f"""\
models:
  - name: m
    deployments: [{{engine: mock, tier: cpu}}]
webhooks:
  - name: ops
    url: {url}
    secret_env: HOOK_SECRET
    events: [job.succeeded, batch.completed]
    allow_private: true
"""
    with fresh.start(config).http() as http:
        http.post("/v1/chat/completions", json=BODY).raise_for_status()
        line = orjson.dumps({**LINE, "body": BODY}) + b"\n"
        file = http.post("/v1/files", files={"file": ("in.jsonl", line)}, data={"purpose": "batch"}).json()
        asked = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        batch = http.post("/v1/batches", json=asked).json()
        assert both.wait(90)
    sdk = openai.OpenAI(api_key="-", webhook_secret=SECRET)
    for headers, body in came:
        sdk.webhooks.verify_signature(body, headers)
        assert b"CANARY" not in body
    events = [orjson.loads(body) for _, body in came]
    assert [event["data"]["id"] for event in events if event["type"] == "batch.completed"] == [batch["id"]]
    assert len(events) == 2
