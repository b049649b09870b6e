"""The engine of fixed latency: shaped like any other."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from fabric.contracts.catalog import Deployment
from fabric.contracts.errors import ConfigError, EngineError
from workers.engines import build
from workers.engines.engine import Answer, Request
from workers.engines.mock import MockEngine


def engine(**options: Any) -> MockEngine:
    return MockEngine(Deployment(name="d", engine="mock", tier="cpu", options=options))


async def run(mock: MockEngine, endpoint: str = "/v1/chat/completions", **body: Any) -> tuple[Answer, list[Any]]:
    """The answer, and the chunks of its stream if it streamed."""
    chunks: list[Any] = []
    request = Request("job_1", endpoint, body, bool(body.pop("stream", False)))  # type: ignore[arg-type]
    answer = await mock.run(request, lambda chunk: chunks.append(orjson.loads(chunk)))
    return answer, chunks


async def test_a_chat_answer_has_as_many_tokens_as_asked() -> None:
    answer, chunks = await run(engine(tokens=3), messages=[{"role": "user", "content": "hello"}])
    assert answer.body["choices"][0]["message"] == {"role": "assistant", "content": "tok tok tok"}
    assert answer.usage.output_tokens == 3
    assert answer.body["usage"]["total_tokens"] == answer.usage.total_tokens
    assert chunks == []


async def test_a_stream_says_the_same_in_pieces() -> None:
    answer, chunks = await run(engine(tokens=3), messages=[], stream=True)
    assert answer.body == {}
    assert answer.first_token_s is not None
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "tok tok tok"
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "stop"]


async def test_completions() -> None:
    answer, _ = await run(engine(tokens=2), "/v1/completions", prompt="hello")
    assert answer.body["choices"][0]["text"] == "tok tok"
    _, chunks = await run(engine(tokens=2), "/v1/completions", prompt="hello", stream=True)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "tok tok"


@pytest.mark.parametrize(("given", "vectors"), [("one", 1), (["one", "two"], 2), ([1, 2, 3], 1)])
async def test_embeddings_one_per_input(given: Any, vectors: int) -> None:
    answer, _ = await run(engine(), "/v1/embeddings", input=given)
    assert [item["index"] for item in answer.body["data"]] == list(range(vectors))
    assert answer.usage.output_tokens == 0


async def test_failures_are_spread_evenly() -> None:
    mock, failed = engine(fail=0.25), 0
    for _ in range(8):
        try:
            await run(mock, messages=[])
        except EngineError as error:
            assert error.retry
            failed += 1
    assert failed == 2


async def test_cancelling_ends_it() -> None:
    task = asyncio.create_task(run(engine(latency_ms=600_000), messages=[]))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_slots_are_the_deployments_or_a_few() -> None:
    assert engine().slots == 64
    assert MockEngine(Deployment(name="d", engine="mock", tier="cpu", slots=3)).slots == 3


@pytest.mark.parametrize("options", [{"latency": 1}, {"tokens": 0}, {"fail": 2}, {"latency_ms": "soon"}])
def test_an_option_that_it_does_not_know_or_cannot_do_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="'d', options"):
        engine(**options)


def test_it_is_built_by_name() -> None:
    assert isinstance(build(Deployment(name="d", engine="mock", tier="cpu")), MockEngine)
