"""What tracing takes of a processor for each job: in the gateway, in the recorder, and in sending spans off."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import click

from benchmarks.command import benchmark
from benchmarks.processes import Void
from benchmarks.report import Report, Table
from fabric.contracts.completion import Completion
from fabric.contracts.job import JobSpec, Measures, Usage
from fabric.contracts.trace import Sampler
from fabric.store.transitions import NewJob

_ROUTE = "/v1/chat/completions"
#: For all spans of a run: none is dropped while the exporter's thread is behind.
_QUEUE = 1_000_000
#: Is no part of tracing, and left out.
_MAKING = "making a completion"


def _collect(told: Connection) -> None:
    """A collector that counts, in a process of its own: tells its port, and at the end how many spans came."""
    from http.server import BaseHTTPRequestHandler, HTTPServer

    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.timeout = 0.1
    told.send(server.server_port)
    while not told.poll():
        server.handle_request()
    sent = map(ExportTraceServiceRequest.FromString, bodies)
    told.send(sum(len(s.spans) for one in sent for r in one.resource_spans for s in r.scope_spans))


def _completion(number: int, trace: str | None) -> Completion:
    return Completion(
        entry_id="1-1",
        spec=JobSpec(f"job_{number:026}", _ROUTE, "assistant", trace=trace),
        state="succeeded",
        attempt=1,
        deployment="small",
        tier="cpu",
        worker="worker_1",
        accepted_ms=1_000,
        dispatched_ms=1_100,
        claimed_ms=1_200,
        finished_ms=2_300,
        measures=Measures(gate_s=0.01, engine_s=0.9, first_token_s=0.1, usage=Usage(100, 50), served_model="m"),
        result=None,
        error=None,
    )


def measure(jobs: int) -> Report:
    from starlette.datastructures import Headers

    from fabric.gateway.request_trace import request_trace
    from fabric.tracing import Tracer, job_spans
    from fabric.tracing.exporting import Exporter

    ours, theirs = get_context("spawn").Pipe()
    collector = get_context("spawn").Process(target=_collect, args=(theirs,), daemon=True)
    collector.start()
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{ours.recv()}"
    os.environ["OTEL_BSP_MAX_QUEUE_SIZE"] = str(_QUEUE)
    exporter = Exporter("bench")
    kept, none = Tracer(Sampler(), exporter.export), Tracer(Sampler(0.0), exporter.export)
    headers, made = Headers(), 0

    def gateway(tracer: Tracer | None) -> Callable[[int], None]:
        new = NewJob(JobSpec("job_1", _ROUTE, "assistant"), b"")

        def work(_: int) -> None:
            with request_trace(tracer, _ROUTE, headers) as trace:
                if trace is not None:
                    trace.traced(new)

        return work

    def recorder(trace: str | None) -> Callable[[int], None]:
        def work(number: int) -> None:
            nonlocal made
            spans = job_spans(_completion(number, trace), {"small": "llamacpp"})
            made += len(spans)
            exporter.export(spans)

        return work

    def making(number: int) -> None:
        _completion(number, None)

    context = Sampler().begin(None)
    assert context is not None
    works = {
        "gateway, off": gateway(None),
        "gateway, not kept": gateway(none),
        "gateway, kept": gateway(kept),
        _MAKING: making,
        "recorder, not kept": recorder(None),
        "recorder, kept": recorder(context.traceparent),
    }
    taken = {name: _us(work, jobs) for name, work in works.items()}
    made += jobs
    began = time.process_time()
    exporter.close()
    rest = time.process_time() - began
    ours.send(None)
    if (came := ours.recv()) != made:
        raise Void(f"{came} of {made} spans came: the others would have cost more")
    collector.join()
    base = taken.pop(_MAKING)
    for name in ("recorder, not kept", "recorder, kept"):
        taken[name] = max(0.0, taken[name] - base)
    whole = taken["gateway, kept"] + taken["recorder, kept"] + rest / jobs * 1e6 - taken["gateway, off"]
    rows = list(taken.items())
    rows += [("sending what was left at the end", rest / jobs * 1e6), ("a traced job, all of it", whole)]
    return Report(
        "tracing",
        whole,
        "us",
        None,
        (),
        [Table(("us of a processor for each job", "mean"), rows)],
        {"us_per_job": dict(rows), "spans_per_job": made / jobs},
    )


def _us(work: Callable[[int], None], jobs: int) -> float:
    """Of a processor, for one: that of all threads, since spans are sent in the background."""
    began = time.process_time()
    for number in range(jobs):
        work(number)
    return (time.process_time() - began) / jobs * 1e6


@benchmark
@click.option("--jobs", default=20_000, show_default=True, help="How many.")
def command(jobs: int) -> Report:
    """Microseconds of a processor that tracing takes for each job."""
    return measure(jobs)
