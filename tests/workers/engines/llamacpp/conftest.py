"""Real llama.cpp with the model that ships. Modules that share one engine run on one loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import orjson
import pytest
import pytest_asyncio

from fabric.contracts.catalog import Deployment
from fabric.settings.defaults import shipped_model
from workers.engines import build
from workers.engines.engine import Answer, Request
from workers.engines.llamacpp import LlamaCppEngine

CAPABILITIES = ("chat", "completions", "embeddings", "json_schema", "logprobs")


def make(**overrides: Any) -> LlamaCppEngine:
    """An engine that isn't started. One thread: what is tested here isn't speed."""
    options = {"threads": 1, "start_timeout_s": 120.0} | overrides.pop("options", {})
    fields = {
        "name": "tiny",
        "engine": "llamacpp",
        "tier": "cpu",
        "model": str(shipped_model()),
        "context_window": 1024,
        "slots": 2,
        "capabilities": CAPABILITIES,
        "options": options,
    }
    engine = build(Deployment.model_validate(fields | overrides))
    assert isinstance(engine, LlamaCppEngine)
    return engine


@asynccontextmanager
async def running(**overrides: Any) -> AsyncIterator[LlamaCppEngine]:
    engine = make(**overrides)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


@dataclass
class Asked:
    """An answer, and the chunks that came before it."""

    answer: Answer
    chunks: list[Any] = field(default_factory=list)

    @property
    def choices(self) -> list[Any]:
        choices: list[Any] = self.answer.body["choices"]
        return choices

    @property
    def texts(self) -> list[str]:
        """What each choice says, streamed or not."""
        if not self.chunks:
            return [c["text"] if "text" in c else c["message"]["content"] for c in self.choices]
        said: dict[int, str] = {}
        for chunk in self.chunks:
            for choice in chunk["choices"]:
                text = choice["text"] if "text" in choice else choice["delta"].get("content") or ""
                said[choice["index"]] = said.get(choice["index"], "") + text
        return [text for _, text in sorted(said.items())]


class Caller:
    """Asks an engine."""

    def __init__(self, engine: LlamaCppEngine) -> None:
        self.engine = engine

    async def ask(self, endpoint: str, *, stream: bool = False, **body: Any) -> Asked:
        chunks: list[bytes] = []
        request = Request("job_1", endpoint, body, stream)  # type: ignore[arg-type]
        answer = await self.engine.run(request, chunks.append)
        return Asked(answer, [orjson.loads(chunk) for chunk in chunks])

    async def chat(self, said: str | list[Any] = "What is an apple?", **body: Any) -> Asked:
        messages = [{"role": "user", "content": said}] if isinstance(said, str) else said
        return await self.ask("/v1/chat/completions", messages=messages, **body)

    async def complete(self, prompt: Any = "An apple is", **body: Any) -> Asked:
        return await self.ask("/v1/completions", prompt=prompt, **body)

    async def tokens(self, text: str) -> list[int]:
        """As llama.cpp reads it."""
        body = orjson.dumps({"content": text, "parse_special": True})
        found: list[int] = orjson.loads((await self.engine._running.request("/tokenize", body)).body)["tokens"]
        return found

    async def never_end(self) -> dict[str, float]:
        """The ``logit_bias`` that keeps an answer going."""
        return {str(id_): -100 for id_ in await self.tokens("<|im_end|><|endoftext|>")}

    async def embed(self, text: Any) -> Asked:
        return await self.ask("/v1/embeddings", input=text)


Start: TypeAlias = Callable[..., AbstractAsyncContextManager[LlamaCppEngine]]


@pytest.fixture(scope="session")
def start() -> Start:
    """``async with start(slots=1, options={…}) as engine``."""
    return running


@pytest.fixture(scope="session")
def caller() -> Callable[[LlamaCppEngine], Caller]:
    return Caller


@pytest.fixture(scope="session")
def unstarted() -> Callable[..., LlamaCppEngine]:
    return make


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tiny() -> AsyncIterator[Caller]:
    """The shipped model, two slots, shared by the tests of a module."""
    async with running() as engine:
        yield Caller(engine)


@pytest.fixture
def processing() -> Callable[[LlamaCppEngine], Awaitable[int]]:
    """How many of llama.cpp's slots are at work, from llama.cpp itself."""

    async def count(engine: LlamaCppEngine) -> int:
        response = await engine._running.request("/slots")
        return sum(slot["is_processing"] for slot in orjson.loads(response.body))

    return count
