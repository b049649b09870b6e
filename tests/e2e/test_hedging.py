"""Two hosted places, of which one stumbles over a request: the other one answers it, and both are on the bill."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.e2e.conftest import new_fabric, until
from tests.e2e.played import chat, playing, say

if TYPE_CHECKING:
    from tests.e2e.conftest import Fabric

CONFIG = """
policies:
  twice: {{kind: cheapest, hedge: true}}
default_policy: twice
models:
  - name: m
    deployments:
      - {{name: first, engine: openai, tier: cloud, base_url: "{url}/first/v1", model: m, api_key_env: PLAYED_KEY,
         price: {{input_per_million: 1, output_per_million: 1}}}}
      - {{name: second, engine: openai, tier: cloud, base_url: "{url}/second/v1", model: m, api_key_env: PLAYED_KEY,
         price: {{input_per_million: 2, output_per_million: 2}}}}
"""


class Provider(ThreadingHTTPServer):
    """Holds requests of the first place that say "slow" until they are taken back. ``gone``: those that were."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.gone = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Provider
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text, place = body["messages"][0]["content"], self.path.split("/")[1]
        self.server.asked.append(f"{place} {text}")
        if place == "first" and text == "slow":
            self.rfile.read(1)  # until the connection is closed
            self.server.gone.set()
            return
        if body.get("stream"):
            self.stream(place)
            return
        say(self, 200, chat(place, {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}))

    def stream(self, word: str) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        delta, stop = {"content": word}, {"index": 0, "delta": {}, "finish_reason": "stop"}
        for choices in ([{"index": 0, "delta": delta, "finish_reason": None}], [stop], []):
            chunk = {"object": "chat.completion.chunk", "choices": choices, **({} if choices else {"usage": usage})}
            self.wfile.write(b"data: %b\n\n" % json.dumps(chunk).encode())
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with playing(Provider()) as server:
        yield server


@pytest.fixture(scope="module")
def fabric(provider: Provider) -> Iterator[Fabric]:
    for fabric in new_fabric(PLAYED_KEY="sk-played"):
        yield fabric.start(CONFIG.format(url=provider.url))


def ask(text: str, *, stream: bool = False, **fabric: Any) -> dict[str, Any]:
    return {
        "stream": stream,
        "model": "m",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 8,
        "fabric": fabric,
    }


def learned(http: httpx.Client, *, stream: bool = False) -> int | None:
    """One more request; answers how many there were once the scheduler knows what is usual."""
    answer = http.post("/v1/chat/completions", json=ask("quick", stream=stream))
    assert answer.headers["x-fabric-deployment"] == "first"
    job = http.get(f"/v1/jobs/{answer.headers['x-fabric-job-id']}").json()
    return len(http.get("/v1/jobs?limit=100").json()["data"]) if job["decision"]["plan"][0]["measured"] else None


def both_are_on_the_bill(http: httpx.Client) -> list[dict[str, Any]] | None:
    rows: list[dict[str, Any]] = http.get("/v1/usage", params={"group_by": "deployment"}).json()["data"]
    return rows if {"first", "second"} <= {row["deployment"] for row in rows} else None


def test_a_request_that_one_place_stumbles_over_is_answered_by_another(fabric: Fabric, provider: Provider) -> None:
    with fabric.http() as http:
        quick = until(lambda: learned(http), within_s=60)
        answer = http.post("/v1/chat/completions", json=ask("slow"), timeout=60)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"]["content"] == "second"
        assert answer.headers["x-fabric-deployment"] == "second"
        assert provider.gone.wait(30), "the first request was taken back"
        job = http.get(f"/v1/jobs/{answer.headers['x-fabric-job-id']}").json()
        assert [(a["deployment"], a["outcome"]) for a in job["attempts"]] == [
            ("first", "outrun"),
            ("second", "succeeded"),
        ]
        rows = until(lambda: both_are_on_the_bill(http), within_s=60)
        # On a busy machine a quick one may be late, too, and its second try be stopped before it runs anywhere.
        requests = {row["deployment"]: row["requests"] for row in rows if row["requests"]}
        assert sum(requests.values()) == quick + 1
        assert requests["second"] >= 1
        assert 'fabric_hedges_total{result="won"}' in http.get("/metrics").text
    assert [asked for asked in provider.asked if asked.endswith("slow")] == ["first slow", "second slow"]


def test_without_it_nothing_is_tried_twice(fabric: Fabric, provider: Provider) -> None:
    with fabric.http() as http:
        before = len(provider.asked)
        refused = http.post("/v1/chat/completions", json=ask("slow", policy="cheapest", deadline_s=2), timeout=60)
        assert refused.status_code in (408, 504), refused.text
        assert provider.asked[before:] == ["first slow"]


def test_a_stream_that_one_place_doesnt_begin_is_begun_by_another(fabric: Fabric, provider: Provider) -> None:
    with fabric.http() as http:
        for _ in range(5):  # so many first tokens are enough to know what is usual
            until(lambda: learned(http, stream=True), within_s=60)
        provider.gone.clear()
        before = len(provider.asked)
        answer = http.post("/v1/chat/completions", json=ask("slow", stream=True), timeout=60)
        assert answer.headers["x-fabric-deployment"] == "second"
        assert answer.headers["x-fabric-attempts"] == "2"
        chunks = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
        assert "".join(c["choices"][0]["delta"].get("content") or "" for c in map(json.loads, chunks)) == "second"
        assert answer.text.rstrip().endswith("data: [DONE]")
        assert provider.gone.wait(30), "the first request was taken back"
        job = http.get(f"/v1/jobs/{answer.headers['x-fabric-job-id']}").json()
    assert job["state"] == "succeeded"
    assert [(a["deployment"], a["outcome"]) for a in job["attempts"]] == [("first", "outrun"), ("second", "succeeded")]
    assert provider.asked[before:] == ["first slow", "second slow"]
