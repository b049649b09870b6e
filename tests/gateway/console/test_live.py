"""Streams: many viewers cost what one costs, and nobody's stream holds up the end of the gateway."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from fabric.gateway import GatewaySettings
    from fabric.store import Store
    from tests.gateway.conftest import Served, Worker

BODY = {"endpoint": "/v1/chat/completions", "body": {"model": "small", "messages": [{"role": "user", "content": "hi"}]}}


_LOOKS = 4


def _messages(lines: Any, count: int) -> list[str]:
    """The first messages of a stream, as HTML."""
    found, message = [], []
    for line in lines:
        if line.startswith("data: "):
            message.append(line.removeprefix("data: "))
        elif not line and message:
            found.append("\n".join(message))
            message = []
            if len(found) == count:
                return found
    raise AssertionError("the stream ended")


def test_a_stream_says_what_has_changed(by_hand: Worker, gateway: Served) -> None:
    with gateway.http() as http, http.stream("GET", "/console/live") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = stream.iter_lines()
        assert "Tiers side by side" in _messages(lines, 1)[0]
        http.post("/v1/jobs", json=BODY)
        job = by_hand.next()
        job.park()
        while "<dd>1 <small>dead letters" not in _messages(lines, 1)[0]:
            pass


def test_many_viewers_ask_the_store_no_more_than_one(gateway: Served, store: Store) -> None:
    def calls() -> int:
        stats = store.redis.info("commandstats")
        return int(sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "hgetall", "zcard")))

    def in_a_while(viewers: int) -> float:
        with ExitStack() as stack:
            http = stack.enter_context(gateway.http())
            streams = [stack.enter_context(http.stream("GET", "/console/live")) for _ in range(viewers)]
            lines = [stream.iter_lines() for stream in streams]
            for each in lines:
                _messages(each, 1)
            before, began = calls(), time.monotonic()
            for number in range(_LOOKS):  # what changes is said; and so many looks later the asking is counted
                http.post("/v1/jobs", json=BODY)
                _messages(lines[number % viewers], 1)
            return (calls() - before) / (time.monotonic() - began)

    alone = in_a_while(1)
    assert in_a_while(20) < 3 * alone + 5


def test_streams_end_with_the_gateway(
    settings: GatewaySettings, serve: Callable[..., Served], meanwhile: Callable[..., Future[Any]]
) -> None:
    gateway = serve(settings, drain_s=600)
    begun = threading.Event()

    def read() -> int:
        with gateway.http() as http, http.stream("GET", "/console/live") as stream:
            for _ in stream.iter_lines():
                begun.set()
            return stream.status_code

    reading = meanwhile(read)
    assert begun.wait(60)
    gateway.stop()
    assert reading.result(timeout=60) == 200


def test_a_stream_of_a_job_that_isnt_there(gateway: Served) -> None:
    answer = httpx.get(f"{gateway.url}/console/jobs/job_none/live", trust_env=False)
    assert answer.status_code == 404
