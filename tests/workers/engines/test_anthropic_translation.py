"""OpenAI's words into Anthropic's and back: what is said stays said, what can't be said is refused by name."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import orjson
import pytest
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import TypeAdapter

from fabric.contracts.errors import EngineUnsupported
from fabric.contracts.job import Usage
from fabric.contracts.openai import ChatCompletionRequest
from workers.engines.anthropic_answer import MessageFold, usage_of, whole_answer
from workers.engines.anthropic_request import message_body
from workers.engines.asking import ErrorEvent, NotTheProtocol

#: The official SDK's own idea of a request.
MESSAGE_REQUEST: TypeAdapter[Any] = TypeAdapter(MessageCreateParamsNonStreaming)
#: Examples may take long on a busy machine.
PATIENT = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
PIXEL = "iVBORw0KGgo="
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Tells it.", "parameters": SCHEMA}}
USER = {"role": "user", "content": "Hi"}


def translated(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    body = {"messages": list(messages or (USER,)), **fields}
    ChatCompletionRequest.model_validate({"model": "m", **body})  # only what the fabric lets through
    sent = message_body(body, "claude", max_tokens=4096)
    MESSAGE_REQUEST.validate_python(sent)
    return sent


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


def call(id_: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


# Requests.


def test_a_plain_request() -> None:
    assert translated() == {
        "model": "claude",
        "max_tokens": 4096,
        "messages": [{"role": "user", "content": [text("Hi")]}],
    }


def test_sampling() -> None:
    sent = translated(temperature=0.5, top_p=0.9, stop="END", user="u-1", max_tokens=7)
    assert sent["temperature"] == 0.5
    assert sent["top_p"] == 0.9
    assert sent["stop_sequences"] == ["END"]
    assert sent["metadata"] == {"user_id": "u-1"}
    assert sent["max_tokens"] == 7
    assert translated(max_completion_tokens=8, stop=["a", "b"])["stop_sequences"] == ["a", "b"]
    assert translated(max_completion_tokens=8)["max_tokens"] == 8
    assert translated(temperature=0)["temperature"] == 0


def test_system_and_developer_messages_become_the_system_prompt() -> None:
    sent = translated(
        {"role": "system", "content": "Be kind."},
        USER,
        {"role": "developer", "content": [text("Be brief."), text("")]},
    )
    assert sent["system"] == [text("Be kind."), text("Be brief.")]
    assert sent["messages"] == [{"role": "user", "content": [text("Hi")]}]


def test_images() -> None:
    parts = [text("What is it?"), {"type": "image_url", "image_url": {"url": f"data:image/jpg;base64,{PIXEL}"}}]
    sent = translated({"role": "user", "content": parts})
    source = {"type": "base64", "media_type": "image/jpeg", "data": PIXEL}
    assert sent["messages"][0]["content"] == [text("What is it?"), {"type": "image", "source": source}]


def test_tools_and_their_results() -> None:
    sent = translated(
        USER,
        {
            "role": "assistant",
            "content": "Let me see.",
            "reasoning_content": "two cities",
            "tool_calls": [call("call_1", "weather", '{"city": "Bern"}'), call("call 2", "weather", "")],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
        {"role": "tool", "tool_call_id": "call 2", "content": ""},
        {"role": "user", "content": "And?"},
        tools=[TOOL, {"type": "function", "function": {"name": "now", "strict": True}}],
    )
    assert sent["tools"] == [
        {"name": "weather", "description": "Tells it.", "input_schema": SCHEMA},
        {"name": "now", "input_schema": {"type": "object"}, "strict": True},
    ]
    _, asked, answered = sent["messages"]
    assert [block["type"] for block in asked["content"]] == ["text", "tool_use", "tool_use"]
    assert asked["content"][1] == {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Bern"}}
    assert asked["content"][2]["input"] == {}
    second = asked["content"][2]["id"]
    assert second != "call 2"  # not in Anthropic's alphabet
    assert answered == {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "call_1", "content": [text("rain")]},
            {"type": "tool_result", "tool_use_id": second},
            text("And?"),
        ],
    }


@pytest.mark.parametrize(
    ("choice", "parallel", "expected"),
    [
        (None, None, None),
        (None, True, None),
        (None, False, {"type": "auto", "disable_parallel_tool_use": True}),
        ("auto", None, {"type": "auto"}),
        ("none", None, {"type": "none"}),
        ("none", False, {"type": "none"}),
        ("required", None, {"type": "any"}),
        ("required", False, {"type": "any", "disable_parallel_tool_use": True}),
        ({"type": "function", "function": {"name": "weather"}}, None, {"type": "tool", "name": "weather"}),
    ],
)
def test_tool_choice(choice: Any, parallel: bool | None, expected: dict[str, Any] | None) -> None:
    given = {"tool_choice": choice, "parallel_tool_calls": parallel}
    sent = translated(tools=[TOOL], **{name: value for name, value in given.items() if value is not None})
    assert sent.get("tool_choice") == expected


def test_no_tools_no_choice() -> None:
    assert not {"tools", "tool_choice"} & set(translated(tools=[], tool_choice="none"))


def test_a_schema_for_the_answer() -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA, "strict": True}}
    assert translated(response_format=wanted)["output_config"] == {"format": {"type": "json_schema", "schema": SCHEMA}}
    assert "output_config" not in translated(response_format={"type": "text"})


def test_the_operators_defaults_lie_beneath() -> None:
    defaults = {"cache_control": {"type": "ephemeral"}, "temperature": 0.1, "output_config": {"effort": "low"}}
    wanted = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}}
    body = {"messages": [USER], "temperature": 0.9, "response_format": wanted}
    sent = message_body(body, "claude", max_tokens=1, stream=True, defaults=defaults)
    assert sent["cache_control"] == {"type": "ephemeral"}
    assert sent["temperature"] == 0.9
    assert sent["output_config"] == {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}}
    assert sent["stream"] is True


def test_what_is_off_is_no_matter() -> None:
    off = {"n": 1, "logprobs": False, "logit_bias": {}, "presence_penalty": 0, "frequency_penalty": 0.0}
    assert translated(**off) == translated()


ASSISTANT = {"role": "assistant", "content": "x"}
GIF = {"type": "image_url", "image_url": {"url": "data:image/gif;base64,R0", "detail": "high"}}
SVG = {"type": "image_url", "image_url": {"url": "data:image/svg+xml;base64,R0"}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"seed": 0}, "seed"),
        ({"logit_bias": {"1": 5}}, "logit_bias"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"frequency_penalty": -0.5}, "frequency_penalty"),
        ({"temperature": 1.5}, "temperature"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages"),
        ({"messages": [ASSISTANT, USER]}, "messages"),
        ({"messages": [USER, {**ASSISTANT, "content": ""}]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages[0].content"),
        ({"messages": [{**USER, "name": "Ada"}]}, "messages[0].name"),
        ({"messages": [{"role": "user", "content": [GIF]}]}, "messages[0].content[0].image_url.detail"),
        ({"messages": [{"role": "user", "content": [text("x"), SVG]}]}, "messages[0].content[1].image_url.url"),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": [call("a", "f", "{}"), call("b", "f", "[1]")]}]},
            "messages[1].tool_calls[1].function.arguments",
        ),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": [call("a", "f", "{secret")]}]},
            "messages[1].tool_calls[0].function.arguments",
        ),
    ],
)
def test_what_can_not_be_said_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    body = {"messages": [USER], **fields}
    ChatCompletionRequest.model_validate({"model": "m", **body})
    with pytest.raises(EngineUnsupported) as caught:
        message_body(body, "claude", max_tokens=1)
    assert caught.value.param == param
    assert "secret" not in caught.value.message
    info = caught.value.info
    assert (info.status, info.fault, info.retry, info.fall_back) == (400, "caller", False, True)


def test_a_field_that_is_new_to_the_fabric_is_not_dropped() -> None:
    with pytest.raises(EngineUnsupported) as caught:
        message_body({"messages": [USER], "reasoning_effort": "high"}, "claude", max_tokens=1)
    assert caught.value.param == "reasoning_effort"


names = st.from_regex(r"[A-Za-z0-9_-]{1,20}", fullmatch=True)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
json_objects = st.dictionaries(st.text(max_size=8), json_values, max_size=3)
contents = st.text(max_size=12) | st.lists(st.text(max_size=12).map(text), min_size=1, max_size=3)
tool_calls = st.builds(
    lambda id_, name, arguments: call(id_, name, orjson.dumps(arguments).decode()),
    st.text(min_size=1, max_size=12),
    names,
    json_objects,
)
messages = st.one_of(
    st.builds(lambda content: {"role": "system", "content": content}, contents),
    st.builds(lambda content: {"role": "developer", "content": content}, contents),
    st.builds(lambda content: {"role": "user", "content": content}, contents),
    st.builds(lambda content: {"role": "assistant", "content": content}, contents),
    st.builds(
        lambda content, calls: {"role": "assistant", "content": content, "tool_calls": calls},
        contents | st.none(),
        st.lists(tool_calls, min_size=1, max_size=3),
    ),
    st.builds(
        lambda id_, content: {"role": "tool", "tool_call_id": id_, "content": content},
        st.text(min_size=1, max_size=12),
        contents,
    ),
)


def said(content: Any) -> list[str]:
    parts = [content] if isinstance(content, str) else [part["text"] for part in content or ()]
    return [part for part in parts if part]


@PATIENT
@given(st.lists(messages, min_size=1, max_size=8))
def test_nothing_that_is_said_gets_lost(conversation: list[dict[str, Any]]) -> None:
    try:
        sent = message_body({"messages": conversation}, "claude", max_tokens=1)
    except EngineUnsupported as refused:
        assert refused.param
        return
    turns = sent["messages"]
    assert turns[0]["role"] == "user"
    assert all(one["role"] != other["role"] for one, other in pairwise(turns))

    blocks = [block for turn in turns for block in turn["content"]]
    texts = [block for b in blocks for block in (b.get("content", []) if b["type"] == "tool_result" else [b])]
    assert [b["text"] for b in texts if b["type"] == "text"] == [
        part for m in conversation if m["role"] in ("user", "assistant", "tool") for part in said(m["content"])
    ]
    assert [b["text"] for b in sent.get("system", ())] == [
        part for m in conversation if m["role"] in ("system", "developer") for part in said(m["content"])
    ]
    calls = [c for m in conversation for c in m.get("tool_calls", ())]
    uses = [b for b in blocks if b["type"] == "tool_use"]
    assert [u["input"] for u in uses] == [orjson.loads(c["function"]["arguments"]) for c in calls]
    ids = {c["id"]: u["id"] for c, u in zip(calls, uses, strict=True)}
    assert len(set(ids.values())) == len(ids)
    for message, block in zip(
        (m for m in conversation if m["role"] == "tool"), (b for b in blocks if b["type"] == "tool_result"), strict=True
    ):
        assert block["tool_use_id"] == ids.get(message["tool_call_id"], block["tool_use_id"])


@pytest.fixture(scope="module")
def official() -> TypeAdapter[Any]:
    """The request's shape in the official SDK."""
    params = pytest.importorskip("anthropic.types.message_create_params")
    return TypeAdapter(params.MessageCreateParamsNonStreaming)


@PATIENT
@given(st.lists(messages, min_size=1, max_size=6))
def test_the_official_sdk_knows_every_body(official: TypeAdapter[Any], conversation: list[dict[str, Any]]) -> None:
    try:
        sent = message_body({"messages": conversation, "tools": [TOOL]}, "claude", max_tokens=1)
    except EngineUnsupported:
        assume(False)
    consume(official.validate_python(sent))


def consume(value: Any) -> None:
    """pydantic checks the items of an ``Iterable`` when they are taken."""
    for item in value.values() if isinstance(value, dict) else value:
        if not isinstance(item, str | int | float | None):
            consume(item)


# Answers.


def message(*blocks: dict[str, Any], stop_reason: str = "end_turn", **usage: Any) -> dict[str, Any]:
    return {
        "id": "msg_theirs",
        "type": "message",
        "role": "assistant",
        "model": "claude-big",
        "content": list(blocks),
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": {"input_tokens": 10, "output_tokens": 5, **usage},
    }


def test_a_message_becomes_a_completion() -> None:
    tool_use = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Bern"}}
    thinking = {"type": "thinking", "thinking": "rain?", "signature": "s"}
    answer, usage = whole_answer(orjson.dumps(message(thinking, text("I "), text("look."), tool_use)))
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "I look.",
                "reasoning_content": "rain?",
                "tool_calls": [call("toolu_1", "weather", '{"city":"Bern"}')],
            },
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    ChatCompletion.model_validate({"id": "x", "model": "m", "created": 1, **answer}, strict=True)
    assert usage == Usage(input_tokens=10, output_tokens=5)


@pytest.mark.parametrize(
    ("stop_reason", "expected"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("pause_turn", "stop"),
        ("what_comes_next", "stop"),
    ],
)
def test_stop_reasons(stop_reason: str, expected: str) -> None:
    answer, _ = whole_answer(orjson.dumps(message(text("x"), stop_reason=stop_reason)))
    assert answer["choices"][0]["finish_reason"] == expected


def test_a_call_alone_has_no_content() -> None:
    tool_use = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
    answer, _ = whole_answer(orjson.dumps(message(tool_use)))
    assert answer["choices"][0]["message"]["content"] is None
    answer, _ = whole_answer(orjson.dumps(message()))
    assert answer["choices"][0]["message"]["content"] == ""


def test_cached_tokens_are_part_of_the_input() -> None:
    usage = {
        "input_tokens": 10,
        "cache_read_input_tokens": 100,
        "cache_creation_input_tokens": 1000,
        "output_tokens": 5,
        "output_tokens_details": {"thinking_tokens": 3},
        "cache_creation": None,
    }
    assert usage_of(usage) == Usage(input_tokens=1110, output_tokens=5, cached_input_tokens=100, reasoning_tokens=3)
    answer, _ = whole_answer(orjson.dumps(message(text("x"), **usage)))
    assert answer["usage"]["prompt_tokens"] == 1110
    assert answer["usage"]["total_tokens"] == 1115
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 100}


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'{"type": "message"}', b'{"type":"message","content":1}'])
def test_what_is_no_message(body: bytes) -> None:
    with pytest.raises(NotTheProtocol):
        whole_answer(body)


def test_an_error_in_place_of_a_message() -> None:
    with pytest.raises(ErrorEvent):
        whole_answer(b'{"type": "error", "error": {"type": "overloaded_error", "message": "x"}}')


# Streams.

blocks = st.lists(
    st.one_of(
        st.builds(text, st.text(min_size=1, max_size=30)),
        st.builds(
            lambda thought: {"type": "thinking", "thinking": thought, "signature": "s"},
            st.text(min_size=1, max_size=30),
        ),
        st.builds(
            lambda id_, name, input_: {"type": "tool_use", "id": id_, "name": name, "input": input_},
            names,
            names,
            json_objects,
        ),
        st.just({"type": "redacted_thinking", "data": "x"}),
    ),
    max_size=5,
)


def pieces(value: str, size: int) -> list[str]:
    return [value[at : at + size] for at in range(0, len(value), size)]


def events_of(whole: dict[str, Any], size: int) -> list[dict[str, Any]]:
    """The stream that Anthropic's documentation describes for a message."""
    start = {**whole, "content": [], "stop_reason": None, "usage": {**whole["usage"], "output_tokens": 1}}
    events: list[dict[str, Any]] = [{"type": "message_start", "message": start}, {"type": "ping"}]
    for index, block in enumerate(whole["content"]):
        match block["type"]:
            case "text":
                empty = {"type": "text", "text": ""}
                deltas = [{"type": "text_delta", "text": part} for part in pieces(block["text"], size)]
            case "thinking":
                empty = {"type": "thinking", "thinking": "", "signature": ""}
                deltas = [{"type": "thinking_delta", "thinking": part} for part in pieces(block["thinking"], size)]
                deltas.append({"type": "signature_delta", "signature": block["signature"]})
            case "tool_use":
                empty = {**block, "input": {}}
                json = orjson.dumps(block["input"]).decode() if block["input"] else ""
                deltas = [{"type": "input_json_delta", "partial_json": part} for part in ["", *pieces(json, size)]]
            case _:
                empty, deltas = block, []
        events.append({"type": "content_block_start", "index": index, "content_block": empty})
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    delta = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    events.append(
        {"type": "message_delta", "delta": delta, "usage": {"output_tokens": whole["usage"]["output_tokens"]}}
    )
    return [*events, {"type": "message_stop"}]


def assembled(chunks: list[bytes]) -> dict[str, Any]:
    """Chunks put together as OpenAI's clients do."""
    message: dict[str, Any] = {}
    finish = None
    for raw in chunks:
        chunk = orjson.loads(raw)
        ChatCompletionChunk.model_validate({"id": "x", "model": "m", "created": 1, **chunk}, strict=True)
        (choice,) = chunk["choices"]
        finish = choice["finish_reason"] or finish
        for name, value in choice["delta"].items():
            if name == "tool_calls":
                for part in value:
                    calls = message.setdefault("tool_calls", [])
                    if part["index"] == len(calls):
                        calls.append({**part, "function": dict(part["function"])})
                        del calls[-1]["index"]
                    else:
                        calls[part["index"]]["function"]["arguments"] += part["function"]["arguments"]
            elif isinstance(message.get(name), str):
                message[name] += value
            elif value is not None or name not in message:
                message[name] = value
    return {"message": message, "finish_reason": finish}


@PATIENT
@given(blocks, st.sampled_from(["end_turn", "max_tokens", "tool_use", "refusal"]), st.integers(1, 7))
def test_a_stream_says_what_the_message_says(content: list[dict[str, Any]], stop_reason: str, size: int) -> None:
    whole = message(*content, stop_reason=stop_reason, cache_read_input_tokens=3)
    fold = MessageFold()
    chunks = [chunk for event in events_of(whole, size) for chunk in fold.take(orjson.dumps(event))]
    answer, usage = whole_answer(orjson.dumps(whole))
    expected = answer["choices"][0]

    got = assembled(chunks)
    assert got["finish_reason"] == expected["finish_reason"]
    said_ = [each["message"].pop("content") or None for each in (got, expected)]
    assert said_[0] == said_[1]
    assert got["message"] == expected["message"]
    assert fold.usage == usage
    assert fold.complete
    assert fold.begun


def test_nothing_is_told_before_the_first_token() -> None:
    fold = MessageFold()
    before = events_of(message(text("Hello")), 2)[:3]
    assert [fold.take(orjson.dumps(event)) for event in before] == [[], [], []]
    assert not fold.begun
    assert fold.usage.input_tokens == 10


def test_events_that_are_new_are_skipped() -> None:
    assert MessageFold().take(b'{"type": "mood", "mood": "good"}') == []


@pytest.mark.parametrize("event", [b"", b"{", b"7", b"{}", b'{"type": 7}', b'{"type": "content_block_delta"}'])
def test_what_is_no_event(event: bytes) -> None:
    with pytest.raises(NotTheProtocol):
        MessageFold().take(event)
