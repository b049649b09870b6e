"""How many requests one worker process holds in flight: the OpenAI engine against a server that takes 500 ms.

    .venv/bin/python tests/workers/engines/measure_http.py [--in-flight 512] [--seconds 5]

Prints one line of JSON for httpx's own transport and one for ours, whole answers and streams. Requests
start spread over the first 500 ms, as they come in life; ideal is in_flight / 0.5 s.
"""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import time
from argparse import ArgumentParser

import httptools
import httpx
import orjson
import uvloop

from fabric.contracts.catalog import Deployment
from workers.engines.engine import Request
from workers.engines.openai import OpenAIEngine

LATENCY_S = 0.5
CHUNKS = 8
WARM_UP_S = 1.5


def body() -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": "tok " * CHUNKS}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 200, "completion_tokens": CHUNKS, "total_tokens": 200 + CHUNKS}
    return orjson.dumps({"id": "x", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage})


def events() -> list[bytes]:
    deltas = [({"content": "tok "}, None)] * CHUNKS + [({}, "stop")]
    choices = [[{"index": 0, "delta": delta, "finish_reason": finish}] for delta, finish in deltas]
    chunks = [{"id": "x", "object": "chat.completion.chunk", "model": "m", "choices": c} for c in choices]
    return [b"data: " + orjson.dumps(c) + b"\n\n" for c in chunks] + [b"data: [DONE]\n\n"]


class Server(asyncio.Protocol):
    """As lean as can be: what is measured is the client."""

    whole = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body()) + body()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    pieces = tuple(b"%x\r\n%b\r\n" % (len(event), event) for event in events())

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)
        self.loop = asyncio.get_running_loop()

    def on_message_begin(self) -> None:
        self.streams = False

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_body(self, data: bytes) -> None:
        self.streams = self.streams or b'"stream":true' in data

    def on_message_complete(self) -> None:
        if self.streams:
            for number, piece in enumerate(self.pieces):
                data = (self.head if not number else b"") + piece
                data += b"0\r\n\r\n" if number == len(self.pieces) - 1 else b""
                self.loop.call_later(LATENCY_S * (number + 1) / len(self.pieces), self.write, data)
        else:
            self.loop.call_later(LATENCY_S, self.write, self.whole)

    def write(self, data: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(data)


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def measure(port: int, in_flight: int, seconds: float, *, ours: bool, stream: bool) -> dict[str, object]:
    url = f"http://127.0.0.1:{port}/v1"
    values = {"engine": "openai", "tier": "cloud", "name": "measured", "model": "m", "base_url": url}
    engine = OpenAIEngine(Deployment(**values, options={"auth": "none"}))
    if not ours:
        limits = httpx.Limits(max_connections=in_flight, max_keepalive_connections=in_flight)
        engine._api._transport = httpx.AsyncHTTPTransport(limits=limits)
    asked = {"messages": [{"role": "user", "content": "x" * 900}], "max_tokens": 32}
    done = 0
    over = False

    async def one(number: int) -> None:
        nonlocal done
        await asyncio.sleep(LATENCY_S * number / in_flight)
        while not over:
            await engine.run(Request("job", "/v1/chat/completions", asked, stream), lambda chunk: None)
            done += 1

    tasks = [asyncio.create_task(one(number)) for number in range(in_flight)]
    await asyncio.sleep(WARM_UP_S)
    done_0, wall_0, cpu_0 = done, time.perf_counter(), time.process_time()
    await asyncio.sleep(seconds)
    count, wall, cpu = done - done_0, time.perf_counter() - wall_0, time.process_time() - cpu_0
    over = True
    await asyncio.gather(*tasks)
    await engine.close()
    return {
        "transport": "ours" if ours else "httpx",
        "stream": stream,
        "in_flight": in_flight,
        "per_s": round(count / wall, 1),
        "ideal_ratio": round(count / wall / (in_flight / LATENCY_S), 4),
        "cpu_ms_per_request": round(cpu / max(count, 1) * 1000, 3),
        "load": round(cpu / wall, 3),
    }


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--in-flight", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--serve", action="store_true")
    given = parser.parse_args()
    if given.serve:
        uvloop.run(serve())
        return
    logging.getLogger("httpx").setLevel(logging.WARNING)
    with subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            port = int(server.stdout.readline())
            for ours, stream in ((False, False), (True, False), (True, True)):
                print(json.dumps(uvloop.run(measure(port, given.in_flight, given.seconds, ours=ours, stream=stream))))
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
