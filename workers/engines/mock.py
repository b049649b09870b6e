"""An engine of fixed latency, for benchmarks and tests of everything around engines.

``options``: ``latency_ms`` (default 0), ``tokens`` of the answer (default 8), ``fail`` (default 0: the
share of requests that fail with a retryable error, spread evenly).
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fabric.contracts.catalog import Deployment
from fabric.contracts.errors import ConfigError, EngineError
from fabric.contracts.job import Usage
from workers.engines.engine import Answer, Emit, Engine, Request

_SLOTS = 64


class MockOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    latency_ms: float = Field(0, ge=0)
    tokens: int = Field(8, ge=1, le=100_000)
    fail: float = Field(0, ge=0, le=1)


class MockEngine(Engine):
    """Answers ``tok tok tok …`` after ``latency_ms``."""

    def __init__(self, deployment: Deployment) -> None:
        super().__init__(deployment)
        try:
            self._options = MockOptions.model_validate(deployment.options)
        except ValidationError as error:
            raise ConfigError(f"Deployment {deployment.name!r}, options: {error.errors()[0]['msg']}.") from error
        self._failures = 0.0

    @property
    def slots(self) -> int:
        return self.deployment.slots or _SLOTS

    async def start(self) -> None:
        """Nothing to load."""

    async def close(self) -> None:
        """Nothing to free."""

    async def run(self, request: Request, emit: Emit) -> Answer:
        started = time.perf_counter()
        tokens = self._options.tokens
        self._failures += self._options.fail
        if self._failures >= 1:
            self._failures -= 1
            raise EngineError("The mock engine was told to fail.")
        usage = Usage(input_tokens=len(orjson.dumps(request.body)) // 4, output_tokens=tokens)
        if request.endpoint == "/v1/embeddings":
            await self._pause(1.0)
            return Answer(_embeddings(request.body), Usage(input_tokens=usage.input_tokens))
        chat = request.endpoint == "/v1/chat/completions"
        if not request.stream:
            await self._pause(1.0)
            return Answer(_whole(chat, " ".join(["tok"] * tokens), usage), usage, time.perf_counter() - started)
        first: float | None = None
        for index in range(tokens):
            await self._pause(1 / tokens)
            first = first if first is not None else time.perf_counter() - started
            emit(_chunk(chat, "tok" if index == 0 else " tok", None, first_of_all=index == 0))
        emit(_chunk(chat, None, "stop"))
        return Answer({}, usage, first)

    async def _pause(self, share: float) -> None:
        if self._options.latency_ms:
            await asyncio.sleep(self._options.latency_ms * share / 1000)


def _whole(chat: bool, text: str, usage: Usage) -> dict[str, Any]:
    content: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    return {
        "object": "chat.completion" if chat else "text_completion",
        "choices": [{"index": 0, **content, "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": usage.input_tokens,
            "completion_tokens": usage.output_tokens,
            "total_tokens": usage.total_tokens,
        },
    }


def _chunk(chat: bool, text: str | None, finish: str | None, *, first_of_all: bool = False) -> bytes:
    if chat:
        delta: dict[str, Any] = {} if text is None else {"content": text}
        if first_of_all:
            delta["role"] = "assistant"
        choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": finish}
    else:
        choice = {"index": 0, "text": text or "", "finish_reason": finish}
    return orjson.dumps({"object": "chat.completion.chunk" if chat else "text_completion", "choices": [choice]})


def _embeddings(body: dict[str, Any]) -> dict[str, Any]:
    wanted = body["input"]
    count = len(wanted) if isinstance(wanted, list) and wanted and not isinstance(wanted[0], int) else 1
    tokens = len(orjson.dumps(wanted)) // 4
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": i, "embedding": [0.0, 1.0, 0.0, 0.0]} for i in range(count)],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
