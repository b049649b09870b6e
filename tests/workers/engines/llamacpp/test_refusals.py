"""What can't be done is refused by name, in words that don't repeat what was asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from fabric.contracts.errors import ContextOverflow, EngineError, EngineRejected, EngineUnavailable, FabricError
from workers.engines.llamacpp import LlamaCppEngine
from workers.engines.llamacpp.failures import failure

if TYPE_CHECKING:
    from conftest import Caller, Start

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET = "xyzzy"
IMAGE = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{SECRET}"}}]
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
BAD_SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": SECRET}}}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("endpoint", ["chat", "completions", "embeddings"])
async def test_a_text_that_is_longer_than_the_context_window(tiny: Caller, endpoint: str, stream: bool) -> None:
    text = f"{SECRET} " * 1100
    with pytest.raises(ContextOverflow) as error:
        if endpoint == "chat":
            await tiny.chat(text, stream=stream)
        elif endpoint == "completions":
            await tiny.complete(["short", text], stream=stream)
        else:
            await tiny.embed(["short", text])
    assert error.value.info.code == "context_length_exceeded" and error.value.info.status == 400
    assert error.value.param == {"chat": "messages", "completions": "prompt", "embeddings": "input"}[endpoint]
    assert "1024" in error.value.message and SECRET not in error.value.message


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [CALL]}]}, "messages"),
        ({"messages": [{"role": "user", "content": IMAGE}]}, "messages"),
        ({"logit_bias": {"4096": 1.0}}, "logit_bias"),
        ({"response_format": BAD_SCHEMA}, "response_format"),
        ({"mirostat": 1}, "mirostat"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_chat_that_this_model_cannot_honour(tiny: Caller, body: dict[str, Any], param: str) -> None:
    with pytest.raises(EngineRejected) as error:
        await tiny.ask("/v1/chat/completions", **({"messages": [{"role": "user", "content": SECRET}]} | body))
    assert error.value.param == param
    assert SECRET not in error.value.message


async def test_tools_that_may_not_be_called_need_no_place(tiny: Caller) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert (await tiny.chat(tools=tools, tool_choice="none", temperature=0)).texts == (
        await tiny.chat(temperature=0)
    ).texts


async def test_tokens_that_the_model_does_not_have(tiny: Caller) -> None:
    for prompt in ([5, 4096], [[5], [4096]]):
        with pytest.raises(EngineRejected, match="4096") as error:
            await tiny.complete(prompt)
        assert error.value.param == "prompt"
        with pytest.raises(EngineRejected) as error:
            await tiny.embed(prompt)
        assert error.value.param == "input"


async def test_an_engine_goes_on_after_a_refusal(tiny: Caller) -> None:
    before = await tiny.chat(temperature=0)
    with pytest.raises(ContextOverflow):
        await tiny.complete("a" * 5000)
    assert (await tiny.chat(temperature=0)).texts == before.texts


async def test_an_endpoint_that_the_deployment_does_not_have(
    start: Start, caller: Callable[[LlamaCppEngine], Caller]
) -> None:
    async with start(capabilities=["completions"]) as engine:
        asks = caller(engine)
        for refused in (asks.chat(), asks.embed("a")):
            with pytest.raises(EngineRejected) as error:
                await refused
            assert error.value.param == "model"
        assert (await asks.complete(max_tokens=1)).texts


async def test_a_template_that_refuses_messages_does_not_quote_them(
    start: Start, caller: Callable[[LlamaCppEngine], Caller]
) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system: ' + m.content) }}{% endif %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    )
    async with start(capabilities=["chat"], options={"chat_template": template}) as engine:
        said = [{"role": "system", "content": SECRET}, {"role": "user", "content": "Hello!"}]
        with pytest.raises(EngineRejected, match="chat template") as error:
            await caller(engine).chat(said)
        assert error.value.param == "messages" and SECRET not in str(error.value)
        assert (await caller(engine).chat(said[1:], max_tokens=3)).texts[0]


def error(kind: str, message: str = SECRET, **more: int) -> dict[str, Any]:
    return {"error": {"type": kind, "message": message, **more}}


@pytest.mark.parametrize(
    ("status", "body", "kind", "param"),
    [
        (400, error("invalid_request_error", f"Field 'n_predict': {SECRET}"), EngineRejected, "max_tokens"),
        (400, error("invalid_request_error"), EngineRejected, "prompt"),
        (400, error("exceed_context_size_error", n_prompt_tokens=9, n_ctx=8), ContextOverflow, "prompt"),
        (500, error("server_error", "input (9 tokens) is too large to process."), ContextOverflow, "prompt"),
        (500, error("server_error"), EngineError, None),
        (0, error("server_error", code=500), EngineError, None),
        (501, error("not_supported_error"), EngineRejected, "prompt"),
        (503, error("unavailable_error"), EngineUnavailable, None),
        (500, SECRET.encode(), EngineError, None),
        (404, b"[]", EngineRejected, "prompt"),
    ],
)
async def test_llama_cpps_errors_in_our_words(
    status: int, body: bytes | dict[str, Any], kind: type[FabricError], param: str | None
) -> None:
    found = failure(status, body if isinstance(body, bytes) else orjson.dumps(body), "prompt")
    assert type(found) is kind and found.param == param
    assert SECRET not in found.message
