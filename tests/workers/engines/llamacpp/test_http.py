"""One request on a unix socket, and the ways in which it can end."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from workers.engines.llamacpp.http import Response, request

Play = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@asynccontextmanager
async def served(play: Play) -> AsyncIterator[str]:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0]))
        try:
            await play(reader, writer)
        finally:
            writer.close()

    with tempfile.TemporaryDirectory(prefix="f-", dir="/tmp") as folder:
        async with await asyncio.start_unix_server(connected, Path(folder) / "s"):
            yield f"{folder}/s"


async def test_an_answer_with_a_length() -> None:
    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 404 Nope\r\nContent-Length: 4\r\n\r\nbody")

    async with served(play) as socket:
        assert await request(socket, "/x", b"{}") == Response(404, b"body")


async def test_a_good_answers_body_comes_in_pieces_and_a_bad_ones_whole() -> None:
    async def good(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in (OK, b"3\r\none\r\n", b"3\r\ntwo\r\n0\r\n\r\n"):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)

    async def bad(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK.replace(b"200", b"500") + b"3\r\none\r\n0\r\n\r\n")

    pieces: list[bytes] = []
    async with served(good) as socket:
        assert await request(socket, "/x", b"{}", pieces.append) == Response(200, b"")
    assert pieces == [b"one", b"two"]
    async with served(bad) as socket:
        assert await request(socket, "/x", b"{}", pieces.append) == Response(500, b"one")
    assert len(pieces) == 2


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\n", OK + b"3\r\none\r\n", b"SMTP\r\n\r\n"])
async def test_an_answer_that_breaks_off_is_an_error(sent: bytes) -> None:
    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)

    async with served(play) as socket:
        with pytest.raises(ConnectionError):
            await request(socket, "/x", b"{}", lambda _: None)


async def test_nobody_there() -> None:
    with pytest.raises(OSError):
        await request("/tmp/f-nobody/s", "/x")


async def test_cancelling_returns_when_the_server_has_hung_up() -> None:
    order: list[str] = []
    asked = asyncio.Event()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"3\r\none\r\n")
        asked.set()
        assert await reader.read() == b""  # the caller sends no more
        writer.write(b"3\r\ntwo\r\n")
        await asyncio.sleep(0.05)
        order.append("stopped")

    pieces: list[bytes] = []
    async with served(play) as socket:
        task = asyncio.create_task(request(socket, "/x", b"{}", pieces.append))
        await asked.wait()
        while not pieces:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        order.append("returned")
    assert order == ["stopped", "returned"]
    assert pieces == [b"one"]  # nothing comes after the cancel


async def test_a_taker_that_fails_stops_the_server_and_gets_its_own_error() -> None:
    stopped = asyncio.Event()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"3\r\none\r\n")
        await reader.read()
        stopped.set()

    def broken(_: bytes) -> None:
        raise KeyError("mine")

    async with served(play) as socket:
        with pytest.raises(KeyError, match="mine"):
            await request(socket, "/x", b"{}", broken)
        assert stopped.is_set()


async def test_a_second_cancel_waits_for_nobody() -> None:
    deaf, asked = asyncio.Event(), asyncio.Event()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await deaf.wait()

    async with served(play) as socket:
        task = asyncio.create_task(request(socket, "/x", b"{}"))
        await asked.wait()
        task.cancel()
        await asyncio.sleep(0.01)
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        deaf.set()
