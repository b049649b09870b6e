"""Two worker processes obey one account's rate limit together."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.broker.conftest import Fabric

#: What the API takes, per window of ``WINDOW_S`` seconds.
LIMIT, WINDOW_S = 40, 1.0
JOBS = 280
ANSWER = {
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}


class Api:
    """A hosted API that takes so many requests per window, as its headers say, and refuses the others."""

    def __init__(self) -> None:
        self.accepted: list[float] = []
        self.refused: list[float] = []
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._started.wait(30)

    def _run(self) -> None:
        async def play() -> None:
            self._stop = asyncio.Event()
            server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
            self._started.set()
            await self._stop.wait()
            server.close()

        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:  # cancels what is left of connections
            runner.run(play())

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                await reader.readexactly(int(head.partition("content-length:")[2].partition("\r\n")[0]))
                writer.write(self._answer(time.monotonic()))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def _answer(self, now: float) -> bytes:
        window = now // WINDOW_S
        used = sum(at // WINDOW_S == window for at in self.accepted[-LIMIT:])
        whole_in_ms = round(((window + 1) * WINDOW_S - now) * 1000)
        ok = used < LIMIT
        (self.accepted if ok else self.refused).append(now)
        headers = {
            "content-type": "application/json",
            "x-ratelimit-limit-requests": str(LIMIT),
            "x-ratelimit-remaining-requests": str(max(0, LIMIT - used - 1)),
            "x-ratelimit-reset-requests": f"{whole_in_ms}ms",
        }
        if not ok:
            headers["retry-after-ms"] = str(whole_in_ms)
        body = json.dumps(ANSWER if ok else {"error": {"message": "slow down", "type": "rate_limit_exceeded"}}).encode()
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        status = "200 OK" if ok else "429 Too Many Requests"
        return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n{lines}\r\n".encode() + body


@pytest.fixture
def api() -> Iterator[Api]:
    api = Api()
    yield api
    api.stop()


def test_two_workers_stay_at_the_limit_and_below_it(api: Api, new_fabric: Callable[..., Fabric]) -> None:
    hosted = {"engine": "openai", "tier": "cloud", "base_url": api.url, "model": "m", "options": {"auth": "none"}}
    fabric = new_fabric({"big": {**hosted, "slots": 64}})
    fabric.scheduler()
    workers = [fabric.start("worker", "cloud", "--name", name, name=name) for name in ("one", "two")]
    fabric.until(lambda: all(fabric.info(worker) and " ready." in worker.said for worker in workers))

    started = time.monotonic()
    ends = fabric.ended(fabric.accept("big", JOBS))
    took = time.monotonic() - started

    assert {end.state for end in ends} == {"succeeded"}
    assert len({end.worker for end in ends}) == 2
    assert len(api.refused) <= JOBS * 0.1, f"{len(api.refused)} of {len(api.accepted)} were refused"
    # On a machine that does nothing else it takes 7 windows; what counts here is that nothing waits for long.
    ideal = JOBS / LIMIT * WINDOW_S
    assert took < 2 * ideal + 5, f"{took:.1f} s where the limit allows {ideal:.1f} s"
