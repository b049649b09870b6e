"""A provider that fails, and what becomes of the jobs: through `fabric up`, spoken to from outside only."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.e2e.conftest import new_fabric, until

if TYPE_CHECKING:
    from tests.e2e.conftest import Fabric

CONFIG = """
default_policy: cloud-first
breaker: {{failures: 4, open_s: 1, open_max_s: 1}}
models:
  - name: chain
    deployments:
      - {{name: chain-cloud, engine: openai, tier: cloud, base_url: "{url}/v1", model: m, api_key_env: PLAYED_KEY}}
      - {{name: chain-cpu, engine: mock, tier: cpu}}
  - name: hopeless
    deployments:
      - {{name: hopeless-cpu, engine: mock, tier: cpu, options: {{fail: 1}}, breaker: {{failures: 99, minimum: 99}}}}
  - name: lonely
    deployments:
      - {{name: lonely-cloud, engine: openai, tier: cloud, base_url: "{url}/v1", model: m, api_key_env: PLAYED_KEY}}
"""
ANSWER: dict[str, Any] = {
    "object": "chat.completion",
    "created": 1,
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "from afar"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
}


class Provider(ThreadingHTTPServer):
    """A hosted API on loopback. ``works``: otherwise every request is a 500. ``asked``: what each said."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.works = False
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[Provider]:
        with cls() as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                yield server
            finally:
                server.shutdown()
                thread.join()


class Handler(BaseHTTPRequestHandler):
    server: Provider
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        self.server.asked.append(body)
        answer = json.dumps(ANSWER if self.server.works else {"error": {"message": "no", "type": "server_error"}})
        self.send_response(200 if self.server.works else 500)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer.encode())

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with Provider.running() as server:
        yield server


@pytest.fixture(scope="module")
def fabric(provider: Provider) -> Iterator[Fabric]:
    for fabric in new_fabric(PLAYED_KEY="played"):
        yield fabric.start(CONFIG.format(url=provider.url))


def chat(http: httpx.Client, model: str, text: str = "hello", **options: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 8, "fabric": options}
    return http.post("/v1/chat/completions", json=body)


def breaker(http: httpx.Client, name: str) -> str:
    tiers = http.get("/v1/tiers").json()["data"]
    (state,) = [d["breaker"]["state"] for tier in tiers for d in tier["deployments"] if d["name"] == name]
    return str(state)


def test_a_job_that_the_cloud_fails_is_answered_by_the_cpu(fabric: Fabric, provider: Provider) -> None:
    with fabric.http() as http:
        answer = chat(http, "chain")
        assert answer.status_code == 200, answer.text
        headers = answer.headers
        assert (headers["x-fabric-tier"], headers["x-fabric-attempts"]) == ("cpu", "4")
        job = http.get(f"/v1/jobs/{headers['x-fabric-job-id']}").json()
        tried = [(attempt["deployment"], attempt["outcome"]) for attempt in job["attempts"]]
        assert tried == [
            ("chain-cloud", "requeued"),
            ("chain-cloud", "requeued"),
            ("chain-cloud", "exhausted"),
            ("chain-cpu", "succeeded"),
        ]
        reasons = [{e["deployment"]: e["reason"] for e in a["decision"]["eliminated"]} for a in job["attempts"]]
        assert reasons == [{}, {}, {}, {"chain-cloud": "exhausted"}]
        (move,) = job["moves"]
        assert (move["from"], move["to"], move["reason"]) == ("chain-cloud", "chain-cpu", "provider_error")
        said = 'fabric_fallbacks_total{from_tier="cloud",reason="provider_error",to_tier="cpu"} 1.0'
        assert said in http.get("/metrics").text
    shown = fabric.command("jobs", "show", job["id"])
    assert "moved from chain-cloud to chain-cpu for attempt 4: provider_error" in shown.stdout


def test_a_stream_moves_on_before_its_first_token(fabric: Fabric) -> None:
    body = {"model": "chain", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8, "stream": True}
    with fabric.http() as http, http.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert (answer.status_code, answer.headers["x-fabric-tier"]) == (200, "cpu")
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert '"content":"tok"' in "".join(lines)


def test_a_restricted_job_never_goes_there_on_the_way(fabric: Fabric, provider: Provider) -> None:
    with fabric.http() as http:
        answer = chat(http, "chain", "a restricted word", privacy="restricted")
        assert (answer.status_code, answer.headers["x-fabric-tier"]) == (200, "cpu")
        refused = chat(http, "lonely", "a restricted word", privacy="restricted")
        assert refused.status_code == 422
    assert not any("a restricted word" in body for body in provider.asked)


def test_a_chain_that_is_used_up_parks_the_job_and_says_so(fabric: Fabric) -> None:
    with fabric.http() as http:
        answer = chat(http, "hopeless")
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "engine_error")
        assert (answer.headers["x-fabric-attempts"], answer.headers["x-fabric-fault"]) == ("3", "engine")
        job_id = answer.headers["x-fabric-job-id"]
    listed = json.loads(fabric.command("dlq", "ls", "--model", "hopeless", "--json").stdout)
    assert [letter["job_id"] for letter in listed] == [job_id]
    assert [attempt["outcome"] for attempt in listed[0]["attempts"]] == ["requeued", "requeued", "dead"]
    codes = [reason["code"] for reason in listed[0]["reasons"]]
    assert codes == ["engine_error", "engine_error", "engine_error", "exhausted"]
    assert "exhausted" in fabric.command("dlq", "show", job_id).stdout
    for _ in range(2):
        again = fabric.command("dlq", "replay", job_id, "--policy", "cheapest", "--json")
        assert (again.returncode == 0) or "not parked" in again.stderr, again.stderr
    with fabric.http() as http:
        job = until(lambda: _parked_again(http, job_id), within_s=60, hint="to be parked again")
    assert (job["policy"], len(job["attempts"])) == ("cheapest", 6)
    assert fabric.command("dlq", "drop", "--all", "--model", "hopeless").returncode == 0
    assert json.loads(fabric.command("dlq", "ls", "--json").stdout) == []


def _parked_again(http: httpx.Client, job_id: str) -> dict[str, Any] | None:
    job: dict[str, Any] = http.get(f"/v1/jobs/{job_id}").json()
    return job if job["state"] == "dead" and len(job["attempts"]) == 6 else None


def test_a_breaker_opens_and_a_probe_closes_it(fabric: Fabric, provider: Provider) -> None:
    """Jobs with no other place wait for it."""
    with fabric.http() as http:
        until(lambda: chat(http, "chain") and breaker(http, "chain-cloud") != "closed", within_s=60)
        before = len(provider.asked)
        answer = chat(http, "lonely", deadline_s=120)
        while answer.status_code == 502 and breaker(http, "lonely-cloud") == "closed":
            answer = chat(http, "lonely", deadline_s=120)
        assert len(provider.asked) > before
        provider.works = True
        waited = chat(http, "lonely", deadline_s=120)
        assert (waited.status_code, waited.headers["x-fabric-tier"]) == (200, "cloud")
        assert waited.json()["choices"][0]["message"]["content"] == "from afar"
        assert breaker(http, "lonely-cloud") == "closed"
        until(lambda: chat(http, "chain").headers["x-fabric-tier"] == "cloud", within_s=60, hint="for a probe")
        assert breaker(http, "chain-cloud") == "closed"
