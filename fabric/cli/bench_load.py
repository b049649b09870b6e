"""Sends a workload to one deployment and takes the times, on the client's clock."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson

from fabric._client_http import Http
from fabric._client_wire import Call
from fabric.bench.runs import Point, Sample
from fabric.bench.workloads import Workload
from fabric.contracts.errors import FabricError


def measure(http: Http, workload: Workload, model: str, deployment: str, concurrency: int) -> Point:
    """One request first that doesn't count: it may find the model not loaded yet."""

    def ask(number: int) -> Sample:
        body = workload.bodies[number % len(workload.bodies)]
        options = {**body.get("fabric", {}), "deployment": deployment}
        return _ask(http, {**body, "model": model, "fabric": options})

    ask(0)
    began = time.perf_counter()
    with ThreadPoolExecutor(concurrency) as threads:
        samples = tuple(threads.map(ask, range(workload.requests)))
    return Point(deployment, model, concurrency, time.perf_counter() - began, samples)


def _ask(http: Http, body: dict[str, Any]) -> Sample:
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    began = time.perf_counter()
    first = last = None
    answer_id, tokens = "", 0
    try:
        with http.stream(Call("POST", "/v1/chat/completions", body=asked, repeatable=False)) as pieces:
            rest = b""
            for piece in pieces:
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    if not line.startswith(b"data: {"):
                        continue
                    chunk = orjson.loads(line[6:])
                    if "error" in chunk:
                        return Sample(time.perf_counter() - began, error=str(chunk["error"]["code"]))
                    answer_id = chunk["id"]
                    tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
                    if chunk["choices"]:
                        last = time.perf_counter()
                        first = first or last
        seconds = time.perf_counter() - began
        job = orjson.loads(http.send(Call("GET", f"/v1/jobs/job_{answer_id.partition('-')[2]}")).body)
    except FabricError as error:
        return Sample(time.perf_counter() - began, error=error.error_code)
    if first is None or last is None:
        return Sample(seconds, error="no_answer")
    between = (last - first) / (tokens - 1) if tokens > 1 else None
    return Sample(seconds, first - began, between, tokens, job["cost_usd"] or 0.0)
