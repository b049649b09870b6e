"""A load generator in a process of its own: HTTP/1.1 requests with prebuilt bytes on raw sockets.

    python -m benchmarks.load < plans, one JSON object a line > samples, one JSON object a line

Each connection sends its next request when the answer to the last one is there. A general client costs more than the
servers that are measured here; this one costs some tens of microseconds a request.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any, cast

import orjson
import uvloop

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_TOKENS = re.compile(rb'"completion_tokens": *(\d+)')
_COMPLAINT_CHARS = 300
_PATIENCE_S = 120.0


@dataclass(frozen=True, slots=True)
class Plan:
    """``seconds`` of answers after ``warmup_s`` of unmeasured ones, or ``requests`` of them."""

    address: str  #: ``host:port``, or the path of a unix socket
    path: str
    bodies: list[str]  #: sent in turn
    connections: int = 1
    warmup_s: float = 0.0
    seconds: float = 0.0
    requests: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """What was measured: answers in ``seconds``, and how long each took."""

    answers: int
    seconds: float
    tokens: float  #: generated in that time; of an answer that began before it or ended after it, the part in it
    latencies_s: list[float] = field(default_factory=list)
    #: Status -> answers other than 200; 0 stands for a connection that broke.
    refused: dict[str, int] = field(default_factory=dict)
    complaint: str = ""  #: the start of the first answer that wasn't a 200


class _Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self, load: _Load) -> None:
        self._load = load
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._whole = 0  #: bytes of the answer that is coming; 0 until its head is there
        self._sent = 0.0
        self._waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        if not self._whole:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            length = _LENGTH.search(self._buffer, 0, end)
            if length is None:
                raise ValueError("an answer without content-length: this client doesn't read streams")
            self._whole = end + 4 + int(length[1])
        if len(self._buffer) >= self._whole:
            self._answered()

    def connection_lost(self, error: Exception | None) -> None:
        if self._waiting:
            self._load.broken()
        self._load.closed()

    def close(self) -> None:
        self._waiting = False
        if self._transport is not None:
            self._transport.close()

    def _answered(self) -> None:
        answer, self._buffer, self._whole = self._buffer, b"", 0
        self._waiting = False
        self._load.answered(answer, self._sent)
        if _CLOSE.search(answer, 0, answer.find(b"\r\n\r\n")):
            self.close()
        else:
            self._send()

    def _send(self) -> None:
        request = self._load.next_request()
        if request is None:
            self.close()
            return
        self._waiting = True
        self._sent = time.perf_counter()
        assert self._transport is not None
        self._transport.write(request)


class _Load:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._requests = _requests(plan)
        self._latencies: list[float] = []
        self._refused: Counter[str] = Counter()
        self._complaint = ""
        #: When an answer was asked for and when it was there, with its tokens.
        self._spans: list[tuple[float, float, int]] = []
        self._left = plan.requests
        self._open = 0
        self._all_closed = asyncio.Event()
        self._stopped = False
        self._measuring = False
        self._connecting: set[asyncio.Task[None]] = set()

    async def run(self) -> Sample:
        for _ in range(self._plan.connections):
            self._connect()
        self._measuring = not self._plan.warmup_s
        await asyncio.sleep(self._plan.warmup_s)
        self._measuring = True
        started = time.perf_counter()
        if self._plan.requests:
            await self._all_closed.wait()
            stopped = time.perf_counter()
        else:
            await asyncio.sleep(self._plan.seconds)
            stopped = time.perf_counter()
            self._measuring = False
            self._stopped = True
            await self._all_closed.wait()
        tokens = sum(tokens_between(started, stopped, *span) for span in self._spans)
        seconds = stopped - started
        return Sample(len(self._latencies), seconds, tokens, self._latencies, dict(self._refused), self._complaint)

    def next_request(self) -> bytes | None:
        if self._stopped:
            return None
        if self._plan.requests:
            if not self._left:
                return None
            self._left -= 1
        return next(self._requests)

    def answered(self, answer: bytes, sent: float) -> None:
        now = time.perf_counter()
        if answer[9:12] != b"200":
            self._refuse(answer[9:12].decode("ascii", "replace"), answer)
            return
        if tokens := _TOKENS.search(answer):
            self._spans.append((sent, now, int(tokens[1])))
        if self._measuring:
            self._latencies.append(now - sent)

    def broken(self) -> None:
        self._refuse("0", b"the connection broke")

    def closed(self) -> None:
        """Some servers close a connection after a number of requests: another one takes its place."""
        self._open -= 1
        if not (self._stopped or self._refused or (self._plan.requests and not self._left)):
            self._connect()
        elif not self._open:
            self._all_closed.set()

    def _refuse(self, status: str, answer: bytes) -> None:
        self._refused[status] += 1
        self._complaint = self._complaint or answer[-_COMPLAINT_CHARS:].decode("utf-8", "replace")

    def _connect(self) -> None:
        self._open += 1
        task = asyncio.create_task(self._connected())
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connected(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            if self._plan.address.startswith("/"):
                await loop.create_unix_connection(lambda: _Connection(self), self._plan.address)
            else:
                host, _, port = self._plan.address.rpartition(":")
                await loop.create_connection(lambda: _Connection(self), host, int(port))
        except OSError:
            self.broken()
            self.closed()


def tokens_between(started: float, stopped: float, sent: float, answered: float, tokens: int) -> float:
    """The tokens of an answer that fall in a time, taken as evenly spread over the time that the answer took."""
    overlap = min(stopped, answered) - max(started, sent)
    return tokens * max(0.0, overlap) / (answered - sent)


def _requests(plan: Plan) -> Iterator[bytes]:
    host = "localhost" if plan.address.startswith("/") else plan.address
    head = f"POST {plan.path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    whole = []
    for text in plan.bodies:
        body = text.encode()
        whole.append(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return cycle(whole)


async def _measure(plan: Plan) -> Sample:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_give_up)
    late = {"message": f"answers are missing after {_PATIENCE_S:g} s"}
    patience = loop.call_later(plan.warmup_s + plan.seconds + _PATIENCE_S, _give_up, loop, late)
    try:
        return await _Load(plan).run()
    finally:
        patience.cancel()


def _give_up(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """An answer that doesn't come, or that this client can't read, would be waited for in vain."""
    print(f"the load generator gives up: {context.get('exception') or context['message']}", file=sys.stderr, flush=True)
    os._exit(1)


def main() -> None:
    """Until the end of the input: a plan in, a sample out."""
    # Not `sys.stdout.buffer`: under PYTHONUNBUFFERED it is a raw file, which may write a part and say nothing.
    with open(sys.stdout.fileno(), "wb", closefd=False) as samples:
        for line in sys.stdin.buffer:
            values: dict[str, Any] = orjson.loads(line)
            sample = uvloop.run(_measure(Plan(**values)))
            samples.write(orjson.dumps(sample) + b"\n")
            samples.flush()


if __name__ == "__main__":
    main()
