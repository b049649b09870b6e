"""Traces over all processes, read by a collector that decodes what really was sent."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from fabric.contracts.trace import batch_context
from tests.e2e.conftest import Fabric, new_fabric

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PROMPT, ANSWER, KEY, REASON = "CANARYPROMPT", "CANARYANSWER", "CANARYKEY", "CANARYREASON"
CONFIG = """
models:
  - name: assistant
    deployments:
      - {{engine: openai, name: hosted, tier: cloud, base_url: "{url}/hosted/v1", model: big, api_key_env: SOME_KEY,
         context_window: 8192, breaker: {{failures: 10000, minimum: 10000}},
         price: {{input_per_million: 1, output_per_million: 2}}}}
      - {{engine: vllm, name: ours, tier: gpu, base_url: "{url}", model: small, context_window: 8192}}
"""


class Outside:
    """The collector, a hosted API that refuses its key, and a vLLM, on one port. ``down``: the collector is away."""

    def __init__(self) -> None:
        self.down = False
        self.told: dict[str, list[str | None]] = {"hosted": [], "ours": []}
        self._spans: list[Any] = []
        self.raw = b""
        self._news = threading.Condition()
        outside = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                self._say(200, {"data": [{"id": "small", "max_model_len": 8192}]})

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.path == "/v1/traces":
                    plain = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
                    outside.collect(plain)
                    self._say(503 if outside.down else 200, {})
                elif self.path.startswith("/hosted/"):
                    outside.told["hosted"].append(self.headers.get("traceparent"))
                    self._say(401, {"error": {"message": REASON, "code": f"no {REASON}", "type": "x"}})
                else:
                    outside.told["ours"].append(self.headers.get("traceparent"))
                    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": ANSWER}}
                    usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
                    answer = {"object": "chat.completion", "created": 1, "choices": [choice], "usage": usage}
                    self._say(200, answer)

            def _say(self, status: int, body: dict[str, Any]) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def collect(self, data: bytes) -> None:
        if self.down:
            return
        request = ExportTraceServiceRequest.FromString(data)
        with self._news:
            self.raw += data
            self._spans += [s for r in request.resource_spans for scope in r.scope_spans for s in scope.spans]
            self._news.notify_all()

    def spans(self, trace_id: str, count: int) -> dict[str, list[Any]]:
        """Of one trace by name, when there are ``count``."""

        def found() -> list[Any]:
            return [span for span in self._spans if span.trace_id.hex() == trace_id]

        with self._news:
            assert self._news.wait_for(lambda: len(found()) >= count, 60), [span.name for span in found()]
            named: dict[str, list[Any]] = {}
            for span in sorted(found(), key=lambda span: span.start_time_unix_nano):
                named.setdefault(span.name, []).append(span)
            return named


@contextmanager
def outside() -> Iterator[Outside]:
    one = Outside()
    thread = threading.Thread(target=one.server.serve_forever)
    thread.start()
    try:
        yield one
    finally:
        one.server.shutdown()
        thread.join()
        one.server.server_close()


@pytest.fixture(scope="module")
def world() -> Iterator[tuple[Fabric, Outside]]:
    with outside() as there:
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": there.url, "OTEL_BSP_SCHEDULE_DELAY": "100", "SOME_KEY": KEY}
        for fabric in new_fabric(**variables):
            yield fabric.start(CONFIG.format(url=there.url)), there


def ask(fabric: Fabric, trace_id: str, flags: str = "01") -> Any:
    options = {"policy": "cloud-first", "tags": ["CANARYTAG"]}
    asked = {
        "model": "assistant",
        "fabric": options,
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": 5,
    }
    headers = {"traceparent": f"00-{trace_id}-{CALLER}-{flags}", "baggage": "text=CANARYBAGGAGE"}
    with fabric.http() as http:
        answer = http.post("/v1/chat/completions", json=asked, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer


def values(span: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


def test_one_trace_from_the_caller_to_the_engine(world: tuple[Fabric, Outside]) -> None:
    fabric, there = world
    answer = ask(fabric, TRACE)
    spans = there.spans(TRACE, 8)
    (request,), (job,) = spans["POST /v1/chat/completions"], spans["fabric.job"]
    assert request.parent_span_id.hex() == CALLER and job.parent_span_id == request.span_id
    assert values(request)["http.response.status_code"] == 200
    assert values(request)["fabric.job.id"] == answer.headers["x-fabric-job-id"] == values(job)["fabric.job.id"]
    refused, run = spans["chat assistant"]
    stages = ("chat assistant", "fabric.queued", "fabric.dispatched")
    assert {s.parent_span_id for name in stages for s in spans[name]} == {job.span_id}
    assert values(refused)["fabric.deployment"] == "hosted" and values(refused)["error.type"] == "provider_auth"
    told = values(run)
    assert (told["fabric.deployment"], told["fabric.attempt"], told["gen_ai.usage.input_tokens"]) == ("ours", 2, 7)
    assert [value.string_value for value in told["gen_ai.response.finish_reasons"].values] == ["stop"]
    assert [event.name for event in run.events] == ["first_token"]
    # What the engines heard of it: ours which span it works in, the other one nothing.
    assert there.told["ours"][-1] == f"00-{TRACE}-{run.span_id.hex()}-01"
    assert there.told["hosted"] and set(there.told["hosted"]) == {None}


def test_no_text_and_no_key_leaves_in_a_span(world: tuple[Fabric, Outside]) -> None:
    fabric, there = world
    trace_id = "a" * 32
    ask(fabric, trace_id)
    there.spans(trace_id, 8)
    assert b"CANARY" not in there.raw


def test_a_caller_that_keeps_no_trace_gets_none(world: tuple[Fabric, Outside]) -> None:
    fabric, there = world
    ask(fabric, "b" * 32, flags="00")
    assert there.told["ours"][-1] is None
    ask(fabric, "c" * 32)
    there.spans("c" * 32, 8)
    assert ("b" * 16).encode() not in there.raw and bytes.fromhex("b" * 32) not in there.raw


def test_a_collector_that_is_away_costs_no_job_anything(world: tuple[Fabric, Outside]) -> None:
    fabric, there = world
    there.down = True
    try:
        for _ in range(20):
            ask(fabric, "d" * 32)
    finally:
        there.down = False
    ask(fabric, "e" * 32)
    assert there.spans("e" * 32, 8)


def test_a_batch_is_a_span_that_its_lines_are_linked_to(world: tuple[Fabric, Outside]) -> None:
    fabric, there = world
    body = {"model": "assistant", "messages": [{"role": "user", "content": PROMPT}]}
    line = {"custom_id": "CANARYLINE", "method": "POST", "url": "/v1/chat/completions", "body": body}
    client = fabric.openai()
    file = client.files.create(file=("in.jsonl", json.dumps(line).encode()), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        extra_headers={"traceparent": f"00-{'f' * 32}-{CALLER}-01"},
    )
    (request,) = there.spans("f" * 32, 1)["POST /v1/batches"]
    (span,) = there.spans(batch_context(batch.id).trace_id, 1)["fabric.batch"]
    assert values(span)["fabric.batch.id"] == batch.id
    assert [link.span_id for link in span.links] == [request.span_id]
    assert b"CANARY" not in there.raw
