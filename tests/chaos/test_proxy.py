"""A link between two processes: open, cut, late, or a hole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from storm.proxy import Link

PATIENCE_S = 30.0


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1000):
        writer.write(data)
    writer.close()


@pytest.fixture
async def link() -> AsyncIterator[Link]:
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    link = Link("a-b", server.sockets[0].getsockname()[1])
    await link.listen()
    yield link
    await link.close()
    server.close()


async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, what: bytes) -> bytes:
    writer.write(what)
    async with asyncio.timeout(PATIENCE_S):
        return await reader.read(1000)


async def test_open_it_passes_everything(link: Link) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
    assert await say(reader, writer, b"one") == b"one"
    assert await say(reader, writer, b"two") == b"two"


async def test_it_leads_to_a_unix_socket(tmp_path: Path) -> None:
    server = await asyncio.start_unix_server(echo, str(tmp_path / "s"))
    link = Link("a-b", tmp_path / "s")
    await link.listen()
    reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
    assert await say(reader, writer, b"one") == b"one"
    await link.close()
    server.close()


async def test_cut_it_ends_what_is_open_and_what_comes(link: Link) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
    await say(reader, writer, b"one")
    link.turn("cut")
    with pytest.raises(ConnectionError):
        assert await say(reader, writer, b"two") != b""
        raise ConnectionResetError
    reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
    async with asyncio.timeout(PATIENCE_S):
        assert await reader.read(1) == b""
    link.turn("open")
    reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
    assert await say(reader, writer, b"three") == b"three"


async def test_from_a_hole_it_comes_when_the_hole_is_closed(link: Link) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
    await say(reader, writer, b"one")
    link.turn("black-hole")
    writer.write(b"two")
    late_reader, late_writer = await asyncio.open_connection("127.0.0.1", link.port)
    late_writer.write(b"three")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await reader.read(1)
    link.turn("open")
    async with asyncio.timeout(PATIENCE_S):
        assert (await reader.read(10), await late_reader.read(10)) == (b"two", b"three")


async def test_a_delay_loses_nothing(link: Link) -> None:
    link.delay_s = 0.01
    link.turn("delay")
    reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
    assert await say(reader, writer, b"one") == b"one"
