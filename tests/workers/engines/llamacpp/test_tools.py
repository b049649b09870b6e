"""Tool calls, with a chat template that has a place for them in front of the shipped model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import orjson
import pytest
import pytest_asyncio
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from fabric.contracts.errors import ConfigError, EngineRejected
from workers.engines.llamacpp import LlamaCppEngine

if TYPE_CHECKING:
    from conftest import Caller, Start

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEMPLATE = """\
{%- if tools %}<|im_start|>system
Tools: {% for tool in tools %}{{ tool | tojson }}{% endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{% if message.tool_calls -%}
{%- for call in message.tool_calls -%}
{{ '{"name": "' + call.function.name + '", "parameters": ' + call.function.arguments | tojson + '}' }}
{%- endfor -%}
{%- else %}{{ message.content }}{% endif %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def function(name: str, **parameters: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": parameters, "required": list(parameters), "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": "x", "parameters": schema}}


TOOLS = [function("weather", city={"enum": ["Rome", "Oslo"]}), function("clock")]
NAMED = {"id": "x", "model": "tiny", "created": 1}
STREAMED = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tools(start: Start, caller: Callable[[LlamaCppEngine], Caller]) -> AsyncIterator[Caller]:
    capabilities = ["chat", "tools", "json_schema"]
    async with start(capabilities=capabilities, options={"chat_template": TEMPLATE}) as engine:
        yield caller(engine)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def calling(tools: Caller) -> dict[str, Any]:
    """The shipped model never learned to call: this makes it begin as a call does, and the grammar does the rest."""
    [brace] = await tools.tokens("{")
    return {"logit_bias": {str(brace): 100}, "max_tokens": 200, "seed": 1}


@STREAMED
async def test_a_required_call_is_made_and_keeps_to_its_schema(
    tools: Caller, calling: dict[str, Any], stream: bool
) -> None:
    asked = await tools.chat("Hello!", tools=TOOLS[:1], tool_choice="required", stream=stream, **calling)
    if stream:
        chunks = [ChatCompletionChunk.model_validate(chunk | NAMED).choices[0] for chunk in asked.chunks]
        assert chunks[0].delta.role == "assistant" and chunks[0].delta.content is None
        parts = [call for chunk in chunks for call in chunk.delta.tool_calls or ()]
        called = "".join(part.function.name or "" for part in parts if part.function)
        arguments = "".join(part.function.arguments or "" for part in parts if part.function)
        identity, finish = parts[0].id, chunks[-1].finish_reason
    else:
        parsed = ChatCompletion.model_validate(asked.answer.body | NAMED).choices[0]
        assert parsed.message.content is None and parsed.message.tool_calls
        call = parsed.message.tool_calls[0]
        assert call.type == "function"
        called, arguments, identity = call.function.name, call.function.arguments, call.id
        finish = parsed.finish_reason
    assert (called, finish) == ("weather", "tool_calls")
    assert orjson.loads(arguments)["city"] in ("Rome", "Oslo")
    assert identity


async def test_a_named_function_is_the_one_that_is_called(tools: Caller, calling: dict[str, Any]) -> None:
    for name in ("weather", "clock"):
        choice = {"type": "function", "function": {"name": name}}
        asked = await tools.chat("Hello!", tools=TOOLS, tool_choice=choice, **calling)
        assert asked.choices[0]["message"]["tool_calls"][0]["function"]["name"] == name


async def test_without_a_reason_to_call_the_model_writes(tools: Caller) -> None:
    for choice in ("auto", "none"):
        asked = await tools.chat("What is an apple?", tools=TOOLS, tool_choice=choice, temperature=0, max_tokens=40)
        assert asked.texts[0] and "tool_calls" not in asked.choices[0]["message"]


async def test_earlier_calls_and_their_results_are_part_of_the_conversation(tools: Caller) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "What is an apple?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "twelve"},
    ]
    with_call = await tools.chat(messages, max_tokens=5)
    without = await tools.chat([messages[0]], max_tokens=5)
    assert with_call.answer.usage.input_tokens > without.answer.usage.input_tokens + 10


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "nobody"}}}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logprobs": True, "stream": True}, "logprobs"),
    ],
)
async def test_what_llama_cpp_would_drop_is_refused(tools: Caller, body: dict[str, Any], param: str) -> None:
    with pytest.raises(EngineRejected) as error:
        await tools.chat("Hello!", tools=TOOLS, **body)
    assert error.value.param == param


async def test_log_probabilities_with_tools_come_whole(tools: Caller) -> None:
    bias = await tools.never_end()
    asked = await tools.chat("Hello!", tools=TOOLS, logprobs=True, top_logprobs=1, max_tokens=3, n=2, logit_bias=bias)
    assert [len(choice["logprobs"]["content"]) for choice in asked.choices] == [3, 3]
    assert asked.answer.usage.output_tokens == 6


async def test_the_capability_needs_a_template_with_a_place_for_tools(
    unstarted: Callable[..., LlamaCppEngine],
) -> None:
    with pytest.raises(ConfigError, match="`tools`"):
        await unstarted(capabilities=["chat", "tools"]).start()
