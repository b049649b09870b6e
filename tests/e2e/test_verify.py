"""``fabric verify`` tells deployments that can be relied on from those that can't, and says what it can't know."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from fabric.settings.defaults import shipped_model

if TYPE_CHECKING:
    from tests.e2e.conftest import Fabric

CONFIG = """
models:
  - name: m
    deployments:
      - {{name: good, engine: llamacpp, tier: cpu, model: {model}, context_window: 512,
         capabilities: [chat, completions, json_schema], options: {{threads: 1}}}}
      - {{name: fake, engine: mock, tier: cpu, options: {{tokens: 8}}}}
      - {{name: moody, engine: openai, tier: cloud, base_url: "{provider}", model: x, capabilities: [chat],
         options: {{auth: none}}}}
      - {{name: deaf, engine: openai, tier: cloud, base_url: "{provider}", model: x, capabilities: [chat, json_schema],
         options: {{auth: none}}}}
  - name: e
    deployments:
      - {{name: vectors, engine: llamacpp, tier: cpu, model: {model}, context_window: 512, capabilities: [embeddings]}}
"""


class Moody(BaseHTTPRequestHandler):
    """An API without `seed` that never says the same thing twice, counts wrongly, and cuts prompts."""

    protocol_version = "HTTP/1.1"
    turns = itertools.count()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if "seed" in body:
            refusal = {"error": {"message": "no", "type": "invalid_request_error", "param": "seed", "code": None}}
            self._send(400, "application/json", json.dumps(refusal).encode())
            return
        text = f"well number {next(self.turns)} is what I say to that"
        usage = {"prompt_tokens": min(30, len(body["messages"][0]["content"]) // 4), "completion_tokens": 9}
        usage["total_tokens"] = sum(usage.values())
        if not body.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "length"}
            self._send(200, "application/json", json.dumps({"choices": [choice], "usage": usage}).encode())
            return
        delta = {"role": "assistant", "content": text}
        events = [
            {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]},
            {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]},
            {"choices": [], "usage": {**usage, "prompt_tokens": 99}},
        ]
        stream = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
        self._send(200, "text/event-stream", stream.encode())

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Silent."""


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Moody)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def fabric(provider: str) -> Iterator[Fabric]:
    from tests.e2e.conftest import new_fabric

    for fabric in new_fabric():
        yield fabric.start(CONFIG.format(model=shipped_model(), provider=provider))


def verify(fabric: Fabric, deployment: str) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Exit status, the state of each check, and all that was printed."""
    done = fabric.command("verify", deployment, "--json", timeout=150)
    assert done.stdout, done.stderr
    shown = json.loads(done.stdout)
    return done.returncode, {check["name"]: check["state"] for check in shown["checks"]}, shown


def test_a_good_deployment_passes_every_check(fabric: Fabric) -> None:
    status, states, shown = verify(fabric, "good")
    assert states == dict.fromkeys(states, "passed") and len(states) == 8, shown
    assert (status, shown["passed"], shown["model"], shown["engine"]) == (0, True, "m", "llamacpp")


def test_one_that_ignores_what_it_is_told_fails(fabric: Fabric) -> None:
    status, states, shown = verify(fabric, "fake")
    assert (status, shown["passed"]) == (1, False)
    failed = {name for name, state in states.items() if state == "failed"}
    assert failed == {"tokenizer"}, shown
    # It says one word again and again, has no schemas, and never comes to a limit.
    assert states["stop"] == states["json_schema"] == states["usage"] == "unchecked"


def test_what_cannot_be_known_is_not_called_passed(fabric: Fabric) -> None:
    status, states, shown = verify(fabric, "moody")
    assert status == 1
    assert states == {
        "round_trip": "passed",
        "determinism": "unchecked",
        "json_schema": "unchecked",
        "context_limit": "failed",
        "stop": "failed",
        "stream": "unchecked",
        "usage": "failed",
        "tokenizer": "unchecked",
    }, shown


def test_one_that_claims_schemas_and_ignores_them_fails(fabric: Fabric) -> None:
    """Its answers end at their limit: being cut is no excuse."""
    _, states, shown = verify(fabric, "deaf")
    assert states["json_schema"] == "failed", shown


def test_embeddings_are_judged_as_embeddings(fabric: Fabric) -> None:
    status, states, shown = verify(fabric, "vectors")
    assert status == 0, shown
    assert {name for name, state in states.items() if state == "passed"} == {"round_trip", "determinism", "tokenizer"}


def test_for_people_there_is_a_table(fabric: Fabric) -> None:
    done = fabric.command("verify", "vectors")
    assert "vectors: 3 passed, 0 failed, 5 unchecked" in done.stdout, done.stderr


def test_a_deployment_that_is_not_there(fabric: Fabric) -> None:
    unknown = fabric.command("verify", "nope")
    assert unknown.returncode == 1 and "there are: deaf, fake, good, moody, vectors" in unknown.stderr


def test_requests_can_be_pinned_to_a_deployment(fabric: Fabric) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    with fabric.http() as http:
        for place in ("fake", "moody", "good"):
            answer = http.post("/v1/chat/completions", json={**body, "fabric": {"deployment": place}})
            assert (answer.status_code, answer.headers["x-fabric-deployment"]) == (200, place), answer.text
        # The label stays a wall.
        walled = {"deployment": "moody", "privacy": "restricted"}
        answer = http.post("/v1/chat/completions", json={**body, "fabric": walled})
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "no_eligible_deployment")
        answer = http.post("/v1/chat/completions", json={**body, "fabric": {"deployment": "vectors"}})
        told = answer.json()["error"]
        assert (answer.status_code, told["code"], told["param"]) == (400, "unknown_deployment", "fabric.deployment")
