"""The load generator against servers that answer as its worst acquaintances do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from benchmarks import client, load
from benchmarks.bare_server import PATH, bare_server
from benchmarks.client import total
from benchmarks.load import Plan, Sample
from benchmarks.processes import Void
from benchmarks.questions import body

Answer = Callable[[int], bytes]

ANSWER = b'{"usage": {"completion_tokens": 3}}'


def http(body: bytes, *, status: bytes = b"200 OK", headers: bytes = b"") -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n%b\r\n%b" % (status, len(body), headers, body)


@asynccontextmanager
async def server(answer: Callable[[int], Awaitable[bytes] | bytes]) -> AsyncIterator[str]:
    """Answers request number n of a connection; closes when the answer says so."""
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            for number in range(1_000):
                head = await reader.readuntil(b"\r\n\r\n")
                seen.append(await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split()[0])))
                reply = answer(number)
                data = reply if isinstance(reply, bytes) else await reply
                for start in range(0, len(data), 20):  # in pieces, as networks deliver
                    writer.write(data[start : start + 20])
                    await writer.drain()
                if b"Connection: close" in data or not data:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    running = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with running:
        host, port = running.sockets[0].getsockname()[:2]
        yield f"{host}:{port}"
    assert set(seen) <= {b'"one"', b'"two"'}


async def sample(address: str, **options: float) -> Sample:
    return await load._Load(Plan(address, "/ask", ['"one"', '"two"'], **options)).run()  # type: ignore[arg-type]


async def test_a_number_of_requests() -> None:
    async with server(lambda _: http(ANSWER)) as address:
        taken = await sample(address, connections=3, requests=20)
    assert taken.answers == len(taken.latencies_s) == 20
    assert taken.tokens == pytest.approx(60, rel=0.5)  # of the first ones a part came before the clock was started
    assert not taken.refused


def test_tokens_count_where_they_fall() -> None:
    assert load.tokens_between(10.0, 20.0, 12.0, 14.0, 8) == 8
    assert load.tokens_between(10.0, 20.0, 8.0, 12.0, 8) == 4
    assert load.tokens_between(10.0, 20.0, 18.0, 22.0, 8) == 4
    assert load.tokens_between(10.0, 20.0, 5.0, 25.0, 8) == 4
    assert load.tokens_between(10.0, 20.0, 21.0, 22.0, 8) == 0


async def test_a_time_of_requests() -> None:
    async with server(lambda _: http(ANSWER)) as address:
        taken = await sample(address, connections=2, warmup_s=0.05, seconds=0.2)
    assert taken.answers > 0
    assert taken.seconds >= 0.2


async def test_a_server_may_close_a_connection_after_an_answer() -> None:
    def every_third(number: int) -> bytes:
        return http(ANSWER, headers=b"Connection: close\r\n" if number == 2 else b"")

    async with server(every_third) as address:
        taken = await sample(address, connections=2, requests=20)
    assert taken.answers == 20
    assert not taken.refused


async def test_what_is_refused_is_told() -> None:
    async with server(lambda _: http(b"too much", status=b"429 Too Many Requests")) as address:
        taken = await sample(address, requests=3)
    assert taken.answers == 0
    assert taken.refused == {"429": 3}
    assert taken.complaint.endswith("too much")


async def test_a_broken_connection_is_told() -> None:
    async with server(lambda _: b"") as address:
        taken = await sample(address, requests=2)
    assert taken.refused == {"0": 1}


async def test_nobody_listens() -> None:
    async with server(lambda _: http(ANSWER)) as address:
        pass
    assert (await sample(address, requests=1)).refused == {"0": 1}


async def test_the_process_measures_and_refuses() -> None:
    def measure(address: str) -> int:
        with client.client() as generator:
            first = generator.run(Plan(address, "/ask", ['"one"'], requests=5))
            with pytest.raises(Void, match="500"):
                generator.run(Plan(address, "/ask", ['"one"'], requests=2))
            return first.answers

    asked = 0

    def fails_later(_: int) -> bytes:
        nonlocal asked
        asked += 1
        return http(ANSWER) if asked <= 5 else http(b"no", status=b"500 Internal Server Error")

    async with server(fails_later) as address:
        assert await asyncio.to_thread(measure, address) == 5


def test_a_sample_may_be_larger_than_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unbuffered, a process may write a part of it and not be told."""
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    with client.client() as generator, bare_server() as address:
        for _ in range(3):
            assert generator.run(Plan(address, PATH, [body("mock")], connections=32, requests=4_000)).answers == 4_000


def test_rounds_add_up() -> None:
    both = total([Sample(2, 1.0, 5, [0.3, 0.1]), Sample(1, 2.0, 1, [0.2])])
    assert (both.answers, both.seconds, both.tokens, both.latencies_s) == (3, 3.0, 6, [0.1, 0.2, 0.3])
