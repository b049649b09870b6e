"""A hosted API that can't be reached has no slots, and gets them back without a job being spent on it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest

from fabric.contracts.catalog import Deployment
from fabric.contracts.errors import ProviderUnavailable
from workers.engines import reach
from workers.engines.openai import OpenAIEngine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

BODY = {"messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
def gone() -> int:
    """A port on which nobody listens, until somebody does."""
    from tests.conftest import free_ports

    return free_ports(1)[0]


@pytest.fixture
async def engine(gone: int, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[OpenAIEngine]:
    monkeypatch.setattr(reach, "_WAIT_S", 0.02)
    monkeypatch.setattr(reach, "_WAIT_CAP_S", 0.02)
    url = f"http://127.0.0.1:{gone}/v1"
    values: dict[str, Any] = {"engine": "openai", "tier": "cloud", "name": "big", "model": "m", "base_url": url}
    engine = OpenAIEngine(Deployment(**values, options={"auth": "none"}))
    yield engine
    await engine.close()


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not true():
            await asyncio.sleep(0.005)


async def test_one_that_comes_back_is_found_again(engine: OpenAIEngine, gone: int, run: Any) -> None:
    assert engine.slots == 512
    with pytest.raises(ProviderUnavailable):
        await run(engine)(BODY)
    assert (engine.slots, engine.state) == (0, "away")

    connected = asyncio.Event()
    server = await asyncio.start_server(lambda _, writer: (connected.set(), writer.close()), "127.0.0.1", gone)
    async with server:
        await until(lambda: engine.slots == 512)
        assert connected.is_set() and engine.state == "loaded"


async def test_an_answer_with_an_error_is_an_answer(start_provider: Callable[..., Awaitable[Any]], run: Any) -> None:
    async def fail(received: Any, wire: Any) -> None:
        await wire.json({"error": {"message": "broken"}}, 500)

    provider = await start_provider(fail)
    values: dict[str, Any] = {"engine": "openai", "tier": "cloud", "name": "b", "model": "m", "base_url": provider.url}
    engine = OpenAIEngine(Deployment(**values, options={"auth": "none"}))
    with pytest.raises(Exception, match="HTTP 500"):
        await run(engine)(BODY)
    assert engine.slots == 512
    await engine.close()


async def test_closing_ends_the_looking(engine: OpenAIEngine, run: Any) -> None:
    with pytest.raises(ProviderUnavailable):
        await run(engine)(BODY)
    looking = engine._api._reach._looking
    assert looking is not None and not looking.done()
    await engine.close()
    assert looking.done()
