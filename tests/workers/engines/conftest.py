"""Hosted APIs, played by a real HTTP server on loopback: well-behaved unless a test says otherwise."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest

from workers.engines.engine import Answer, Engine, Request

Play = Callable[["Received", "Wire"], Awaitable[None]]


@dataclass(frozen=True)
class Received:
    """A request as it came. ``connection`` counts connections from 1."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


class Wire:
    """What a play writes its answer to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def raw(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def head(self, status: int, kind: str, headers: Mapping[str, str] | None = None) -> None:
        """The head of a chunked answer."""
        lines = {"content-type": kind, "transfer-encoding": "chunked", **(headers or {})}
        text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        await self.raw(f"HTTP/1.1 {status} Played\r\n{text}\r\n".encode())

    async def chunk(self, data: bytes) -> None:
        await self.raw(b"%x\r\n%b\r\n" % (len(data), data))

    async def end(self) -> None:
        await self.raw(b"0\r\n\r\n")

    async def body(
        self, body: bytes, kind: str = "application/json", status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        lines = {"content-type": kind, "content-length": str(len(body)), **(headers or {})}
        text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        await self.raw(f"HTTP/1.1 {status} Played\r\n{text}\r\n".encode() + body)

    async def json(self, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        await self.body(orjson.dumps(value), status=status, headers=headers)

    async def events(self, values: Iterable[Any], *, end: bool = True) -> None:
        """A stream: one chunk an event. Bytes go out as they are."""
        await self.head(200, "text/event-stream; charset=utf-8")
        for value in values:
            await self.event(value)
        if end:
            await self.end()

    async def event(self, value: Any) -> None:
        await self.chunk(b"data: " + (value if isinstance(value, bytes) else orjson.dumps(value)) + b"\n\n")

    def cut(self) -> None:
        self._writer.transport.abort()

    async def gone(self) -> None:
        """Returns when the client has closed the connection."""
        try:
            while await self._reader.read(65536):
                pass
        except ConnectionError:
            pass


class Provider:
    """The server. ``plays`` are used up one a request; then ``play`` goes on for ever."""

    def __init__(self, play: Play) -> None:
        self.play = play
        self.plays: list[Play] = []
        self.received: list[Received] = []
        self.arrived = asyncio.Condition()
        self.connections = 0
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self, tls: ssl.SSLContext | None = None) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
        scheme = "https" if tls else "http"
        self.url = f"{scheme}://localhost:{self._server.sockets[0].getsockname()[1]}/v1"

    async def stop(self) -> None:
        self._server.close()
        self.drop_connections()
        await self._server.wait_closed()

    def drop_connections(self) -> None:
        for writer in [*self._writers]:
            writer.transport.abort()

    async def until(self, count: int) -> None:
        """Returns when that many requests have come."""
        async with self.arrived:
            await self.arrived.wait_for(lambda: len(self.received) >= count)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        self._writers.add(writer)
        try:
            while True:
                received = await _read(reader, number)
                async with self.arrived:
                    self.received.append(received)
                    self.arrived.notify_all()
                play = self.plays.pop(0) if self.plays else self.play
                await play(received, Wire(reader, writer))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()


async def _read(reader: asyncio.StreamReader, connection: int) -> Received:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    request, *lines = head.rstrip().split("\r\n")
    method, path, _ = request.split(" ")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Received(method, path, headers, body, connection)


@dataclass
class Run:
    """One ``Engine.run`` and what it emitted."""

    engine: Engine
    chunks: list[bytes] = field(default_factory=list)
    first: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(
        self, body: dict[str, Any], *, endpoint: Any = "/v1/chat/completions", stream: bool = False
    ) -> Answer:
        return await self.engine.run(Request("job_x", endpoint, body, stream), self._emit)

    def _emit(self, chunk: bytes) -> None:
        self.chunks.append(chunk)
        self.first.set()


@pytest.fixture
async def start_provider() -> AsyncIterator[Callable[..., Awaitable[Provider]]]:
    """``await start_provider(play, tls=None)``: a server that is stopped at the end of the test."""
    started = []

    async def start(play: Play, tls: ssl.SSLContext | None = None) -> Provider:
        provider = Provider(play)
        await provider.start(tls)
        started.append(provider)
        return provider

    yield start
    for provider in started:
        await provider.stop()


@dataclass(frozen=True)
class Certificate:
    file: Path
    key: Path

    @property
    def server(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.file, self.key)
        return context


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """Self-made, for ``localhost``."""
    if not shutil.which("openssl"):
        pytest.skip("needs the openssl command")
    folder = tmp_path_factory.mktemp("tls")
    made = Certificate(folder / "cert.pem", folder / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command, "-keyout", made.key, "-out", made.file], check=True, capture_output=True)
    return made


@pytest.fixture
def run() -> type[Run]:
    """``await run(engine)(body, endpoint=, stream=)``."""
    return Run
