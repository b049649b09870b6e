"""Connections of the engines that speak HTTP: kept, found stale, and closed at once when nobody waits any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from fabric.contracts.catalog import Deployment
from fabric.contracts.errors import ProviderError
from workers.engines.openai import OpenAIEngine

BODY = {"messages": [{"role": "user", "content": "Hi"}]}
ANSWER = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}]}


def piece(text: str, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}


async def well(received: Any, wire: Any) -> None:
    if received.json.get("stream"):
        await wire.events([piece("Hel"), piece("lo", "stop"), b"[DONE]"])
    else:
        await wire.json(ANSWER)


@pytest.fixture
async def provider(start_provider: Callable[..., Awaitable[Any]]) -> Any:
    return await start_provider(well)


@pytest.fixture
async def engine(provider: Any) -> AsyncIterator[OpenAIEngine]:
    engine = await started(provider.url)
    yield engine
    await engine.close()


async def started(url: str, **options: Any) -> OpenAIEngine:
    values = {"engine": "openai", "tier": "cloud", "name": "big", "model": "gpt-big"}
    engine = OpenAIEngine(Deployment(**values, base_url=url, options={"auth": "none", **options}))
    await engine.start()
    return engine


@pytest.mark.parametrize("stream", [False, True])
async def test_a_connection_is_kept(engine: OpenAIEngine, provider: Any, run: Any, stream: bool) -> None:
    for _ in range(3):
        await run(engine)(BODY, stream=stream)
    assert [r.connection for r in provider.received] == [1, 1, 1]


async def test_a_refusal_keeps_the_connection(engine: OpenAIEngine, provider: Any, run: Any) -> None:
    async def refuse(received: Any, wire: Any) -> None:
        await wire.json({"error": {"message": "no"}}, 400)

    provider.plays = [refuse, well]
    with pytest.raises(Exception, match="HTTP 400"):
        await run(engine)(BODY)
    await run(engine)(BODY)
    assert provider.connections == 1


async def test_an_answer_that_ends_with_its_connection(engine: OpenAIEngine, provider: Any, run: Any) -> None:
    async def old_fashioned(received: Any, wire: Any) -> None:
        await wire.raw(b'HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n{"choices": [{"message": {}}]}')
        raise ConnectionError  # closes

    provider.plays = [old_fashioned]
    await run(engine)(BODY)
    await run(engine)(BODY)
    assert [r.connection for r in provider.received] == [1, 2]


async def test_an_informational_answer_is_skipped(engine: OpenAIEngine, provider: Any, run: Any) -> None:
    async def hints_first(received: Any, wire: Any) -> None:
        await wire.raw(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n")
        await wire.json(ANSWER)

    provider.play = hints_first
    await run(engine)(BODY)
    await run(engine)(BODY)
    assert provider.connections == 1


async def test_connections_that_the_server_closed_are_not_used(engine: OpenAIEngine, provider: Any, run: Any) -> None:
    await run(engine)(BODY)
    provider.drop_connections()
    await run(engine)(BODY)
    assert [r.connection for r in provider.received] == [1, 2]


async def test_a_request_on_a_connection_that_was_just_closed_goes_out_again(
    engine: OpenAIEngine, provider: Any, run: Any
) -> None:
    async def close_without_an_answer(received: Any, wire: Any) -> None:
        wire.cut()

    await run(engine)(BODY)
    provider.plays = [close_without_an_answer]
    await run(engine)(BODY)
    assert [r.connection for r in provider.received] == [1, 1, 2]


async def test_a_request_on_a_new_connection_goes_out_once(engine: OpenAIEngine, provider: Any, run: Any) -> None:
    async def close_without_an_answer(received: Any, wire: Any) -> None:
        wire.cut()

    provider.plays = [close_without_an_answer]
    with pytest.raises(ProviderError):
        await run(engine)(BODY)
    assert len(provider.received) == 1


async def test_a_connection_that_brings_more_than_was_asked_is_closed(
    engine: OpenAIEngine, provider: Any, run: Any
) -> None:
    said_too_much = asyncio.Event()

    async def twice(received: Any, wire: Any) -> None:
        await wire.json(ANSWER)
        await wire.json(ANSWER)
        await wire.gone()
        said_too_much.set()

    provider.plays = [twice]
    await run(engine)(BODY)
    await asyncio.wait_for(said_too_much.wait(), 30)
    await run(engine)(BODY)
    assert [r.connection for r in provider.received] == [1, 2]


# Cancelling.


@pytest.mark.parametrize("stream", [False, True])
async def test_cancelling_before_the_answer_closes_the_connection(
    engine: OpenAIEngine, provider: Any, run: Any, stream: bool
) -> None:
    stopped = asyncio.Event()

    async def think(received: Any, wire: Any) -> None:
        await wire.gone()
        stopped.set()

    provider.play = think
    task = asyncio.create_task(run(engine)(BODY, stream=stream))
    await provider.until(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(stopped.wait(), 30)


async def test_cancelling_in_mid_stream_closes_the_connection(engine: OpenAIEngine, provider: Any, run: Any) -> None:
    stopped = asyncio.Event()

    async def talk(received: Any, wire: Any) -> None:
        await wire.events([piece("Hel")], end=False)
        await wire.gone()
        stopped.set()

    provider.plays = [talk]
    streamed = run(engine)
    task = asyncio.create_task(streamed(BODY, stream=True))
    await asyncio.wait_for(streamed.first.wait(), 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(stopped.wait(), 30)

    await run(engine)(BODY)
    assert [r.connection for r in provider.received] == [1, 2]


async def test_cancelling_while_connecting(run: Any) -> None:
    arrived = asyncio.Event()
    gone = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.set()
        try:
            while await reader.read(65536):
                pass
        except ConnectionError:
            pass
        gone.set()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with server:
        engine = await started(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
        task = asyncio.create_task(run(engine)(BODY))
        await asyncio.wait_for(arrived.wait(), 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(gone.wait(), 30)
        await engine.close()


async def test_closing_the_engine_closes_its_connections(provider: Any, run: Any) -> None:
    closed = asyncio.Event()

    async def then_wait(received: Any, wire: Any) -> None:
        await well(received, wire)
        await wire.gone()
        closed.set()

    provider.play = then_wait
    engine = await started(provider.url)
    await run(engine)(BODY)
    await engine.close()
    await asyncio.wait_for(closed.wait(), 30)


# Large and slow.


async def test_a_slow_reader_slows_the_sender(provider: Any) -> None:
    """What the reader hasn't taken doesn't pile up here."""
    from workers.engines.connection import Connection

    sent = 0
    stalled = asyncio.Event()

    async def flood(received: Any, wire: Any) -> None:
        nonlocal sent
        await wire.head(200, "text/event-stream")
        for _ in range(1000):
            try:
                async with asyncio.timeout(1.0):
                    await wire.chunk(b"x" * 65536)
            except TimeoutError:
                stalled.set()
                return
            sent += 65536

    provider.play = flood
    port = int(provider.url.rpartition(":")[2].removesuffix("/v1"))
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(lambda: Connection(lambda _: None), "127.0.0.1", port)
    await connection.ask(b"POST /v1/x HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}")
    await asyncio.wait_for(stalled.wait(), 60)
    assert sent < 65_536_000
    assert len(await connection.read()) < 2_000_000
    connection.abort()


async def test_a_proxy_is_asked_for_the_provider(start_provider: Callable[..., Awaitable[Any]], run: Any) -> None:
    proxy = await start_provider(well)
    engine = await started("http://far.invalid/v1", proxy=proxy.url.removesuffix("/v1"))
    assert (await run(engine)(BODY)).body["choices"]
    await engine.close()
    assert proxy.received[0].path == "http://far.invalid/v1/chat/completions"
