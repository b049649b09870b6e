"""A real vLLM on the CPU, with a tiny model of random weights. ``scripts/get-vllm-cpu`` makes both."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from fabric.contracts.catalog import Deployment
from fabric.contracts.errors import (
    ConfigError,
    ContextOverflow,
    EngineError,
    EngineRejected,
    EngineUnavailable,
    FabricError,
)
from workers.engines.anthropic import AnthropicEngine
from workers.engines.vllm import VllmEngine

FOLDER = Path(os.environ.get("VLLM_CPU_HOME") or Path.home() / ".cache/inference-fabric/vllm-cpu")
BODY = {"messages": [{"role": "user", "content": "Where is the job?"}], "max_tokens": 24, "temperature": 0}

pytestmark = [
    pytest.mark.skipif(
        not (FOLDER / "made").exists(), reason=f"no vLLM in {FOLDER}: ./scripts/get-vllm-cpu makes it, or says why not"
    ),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(600),
]


def deployment(**more: Any) -> Deployment:
    """``args``: beyond those that every server here gets."""
    options = {
        "command": ["nice", "-n", "10", str(FOLDER / "bin" / "vllm")],
        "args": {"enforce-eager": True, "dtype": "float32", "max-num-seqs": 16, **more.pop("args", {})},
        "env": {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"},
        "start_timeout_s": 400,
    }
    values = {"engine": "vllm", "tier": "gpu", "name": "tiny", "model": str(FOLDER / "model"), "context_window": 2048}
    return Deployment(**{**values, "options": options, **more})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[VllmEngine]:
    engine = VllmEngine(deployment())
    await engine.start()
    yield engine
    await engine.close()


async def metric(engine: VllmEngine, name: bytes) -> float:
    assert engine._link
    _, metrics = await engine._link.api.get("/metrics", 60)
    lines = (line for line in metrics.splitlines() if line.startswith(name + b"{"))
    return sum(float(line.rpartition(b" ")[2]) for line in lines)


def text_of(chunks: list[bytes]) -> str:
    return "".join(orjson.loads(c)["choices"][0]["delta"].get("content") or "" for c in chunks)


async def test_answers_are_shaped_and_the_same_each_time(engine: VllmEngine, run: Any) -> None:
    first = await run(engine)(BODY)
    second = await run(engine)(BODY)
    streamed = run(engine)
    streamed_answer = await streamed(BODY, stream=True)

    ChatCompletion.model_validate({"id": "x", "model": "m", "created": 1, **first.body}, strict=True)
    for chunk in streamed.chunks:
        values = orjson.loads(chunk)
        assert not {"id", "model", "usage"} & set(values)
        ChatCompletionChunk.model_validate({"id": "x", "model": "m", "created": 1, **values}, strict=True)
    assert first.body["choices"] == second.body["choices"]
    assert text_of(streamed.chunks) == first.body["choices"][0]["message"]["content"]
    assert streamed_answer.usage.output_tokens == first.usage.output_tokens == 24
    assert first.usage.input_tokens == streamed_answer.usage.input_tokens > 0
    assert streamed_answer.first_token_s is not None


async def test_completions_with_options(engine: VllmEngine, run: Any) -> None:
    body = {"prompt": ["A job", "A worker"], "n": 2, "max_tokens": 4, "seed": 3, "logprobs": 1, "stop": ["zzz"]}
    answer = await run(engine)(body, endpoint="/v1/completions")
    Completion.model_validate({"id": "x", "model": "m", "created": 1, **answer.body}, strict=True)
    assert len(answer.body["choices"]) == 4
    assert answer.usage.output_tokens == 16

    streamed = run(engine)
    await streamed(body, endpoint="/v1/completions", stream=True)
    ends = [orjson.loads(c)["choices"][0] for c in streamed.chunks]
    assert {c["index"] for c in ends if c["finish_reason"]} == {0, 1, 2, 3}


async def test_a_schema_is_kept_to(engine: VllmEngine, run: Any) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "yes_or_no", "schema": {"enum": ["yes", "no"]}}}
    answer = await run(engine)({**BODY, "response_format": schema})
    assert orjson.loads(answer.body["choices"][0]["message"]["content"]) in ("yes", "no")


async def test_a_grammar_is_kept_to(engine: VllmEngine, run: Any) -> None:
    grammar = 'root ::= ("yes" | "no") ", " [0-9] [0-9]'
    asked = {**BODY, "response_format": {"type": "grammar", "grammar": grammar}}
    answer = await run(engine)(asked)
    assert re.fullmatch("(yes|no), [0-9][0-9]", answer.body["choices"][0]["message"]["content"])
    streamed = run(engine)
    await streamed(asked, stream=True)
    assert text_of(streamed.chunks) == answer.body["choices"][0]["message"]["content"]
    with pytest.raises(EngineRejected):
        await run(engine)({**BODY, "response_format": {"type": "grammar", "grammar": "root ::= ("}})
    assert (await run(engine)(BODY)).body  # the server has lived through it


@pytest.mark.parametrize("body", [{"max_tokens": 5000}, {"messages": [{"role": "user", "content": "long " * 3000}]}])
async def test_what_does_not_fit_is_named(engine: VllmEngine, run: Any, body: dict[str, Any]) -> None:
    with pytest.raises(ContextOverflow):
        await run(engine)({**BODY, **body})
    with pytest.raises(ContextOverflow):
        await run(engine)({**BODY, **body}, stream=True)


async def test_what_the_server_was_not_started_for_is_refused(engine: VllmEngine, run: Any) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    with pytest.raises(EngineRejected):
        await run(engine)({**BODY, "tools": [tool], "tool_choice": "auto"})


@pytest.mark.parametrize(
    ("more", "kind", "named"),
    [
        ({"model": "no-such-org/no-such-model"}, EngineUnavailable, "It says: .*Error: .*(cached|offline|traffic)"),
        ({"context_window": 4096}, EngineUnavailable, r"It says: .*4096.*2048"),
        ({"args": {"no-such-switch": True}}, ConfigError, "unrecognized arguments: --no-such-switch"),
    ],
)
async def test_why_it_does_not_start(more: dict[str, Any], kind: type[FabricError], named: str) -> None:
    """A model that isn't here while Hugging Face can't be reached; a context window that the model doesn't have."""
    with pytest.raises(kind, match=named):
        await VllmEngine(deployment(**more)).start()


async def test_attaching_to_one_that_runs(engine: VllmEngine, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine._link
    api = engine._link.api
    monkeypatch.setenv("TINY_KEY", dict(api._headers)[b"authorization"].decode().removeprefix("Bearer "))
    attached = VllmEngine(deployment(base_url=api.place, api_key_env="TINY_KEY", options={}))
    await attached.start()
    assert (attached.slots, attached.context) == (512, 2048)
    assert (await run(attached)(BODY)).body["choices"] == (await run(engine)(BODY)).body["choices"]
    await attached.close()
    with pytest.raises(ConfigError, match="set `context_window: 2048`"):
        longer = deployment(base_url=api.place, api_key_env="TINY_KEY", options={}, context_window=4096)
        await VllmEngine(longer).start()


async def test_the_anthropic_engine_speaks_its_protocol(
    engine: VllmEngine, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM serves Anthropic's Messages API, too: a real server for the other engine."""
    assert engine._link
    api = engine._link.api
    monkeypatch.setenv("TINY_KEY", dict(api._headers)[b"authorization"].decode().removeprefix("Bearer "))
    values = {"engine": "anthropic", "tier": "gpu", "name": "ant", "model": engine.deployment.model}
    claude = AnthropicEngine(
        Deployment(**values, base_url=f"{api.place}/v1", api_key_env="TINY_KEY", options={"auth": "bearer"})
    )
    await claude.start()
    body = {**BODY, "stop": ["zzz"]}
    whole = await run(claude)(body)
    streamed = run(claude)
    ended = await streamed(body, stream=True)
    await claude.close()

    same = await run(engine)(body)
    assert whole.body["choices"][0]["message"]["content"] == same.body["choices"][0]["message"]["content"]
    assert text_of(streamed.chunks) == same.body["choices"][0]["message"]["content"]
    assert whole.body["choices"][0]["finish_reason"] == same.body["choices"][0]["finish_reason"] == "length"
    assert whole.usage == same.usage == ended.usage


async def test_cancelling_stops_the_generation(engine: VllmEngine, run: Any) -> None:
    written_before = await metric(engine, b"vllm:generation_tokens_total")
    streamed = run(engine)
    # As long as can be, so that a busy machine doesn't finish it first. Token 1 ends an answer.
    body = {**BODY, "max_tokens": 1900, "n": 16, "temperature": 1, "logit_bias": {"1": -100}}
    task = asyncio.create_task(streamed(body, stream=True))
    await asyncio.wait_for(streamed.first.wait(), 240)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(240):
        while await metric(engine, b"vllm:num_requests_running"):
            await asyncio.sleep(0.05)
    assert await metric(engine, b"vllm:generation_tokens_total") - written_before < 16 * 1900


async def test_slots_shrink_while_requests_wait_in_the_server(engine: VllmEngine, run: Any) -> None:
    body = {**BODY, "max_tokens": 200, "temperature": 1, "logit_bias": {"1": -100}}
    shrunk = asyncio.Event()

    async def keep_asking(stream: bool) -> set[int]:
        lengths = set()
        while not shrunk.is_set():
            # An overloaded server may drop a connection: the fabric would try again, and not at once, which would keep
            # the loop from doing anything else while the server is away.
            try:
                lengths.add((await run(engine)(body, stream=stream)).usage.output_tokens)
            except EngineError:
                await asyncio.sleep(0.2)
        return lengths

    tasks = [asyncio.create_task(keep_asking(bool(i % 2))) for i in range(64)]
    try:
        async with asyncio.timeout(240):
            while engine.slots > 16 + 3:  # what runs, an eighth, and one
                await asyncio.sleep(0.05)
    finally:
        shrunk.set()  # or they would ask for ever
    assert set.union(*await asyncio.gather(*tasks)) == {200}
    async with asyncio.timeout(240):
        while engine.slots < 512:
            await asyncio.sleep(0.05)
