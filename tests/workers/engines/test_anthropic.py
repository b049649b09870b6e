"""The engine for Anthropic's Messages API, over real HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import orjson
import pytest
from anthropic import Anthropic
from anthropic.types import Message, RawMessageStreamEvent
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import TypeAdapter

from fabric.contracts.catalog import Deployment
from fabric.contracts.errors import (
    ConfigError,
    ContextOverflow,
    EngineRejected,
    EngineUnsupported,
    FabricError,
    ProviderAuth,
    ProviderError,
    ProviderMisconfigured,
    ProviderStreamBroken,
    ProviderTimeout,
    QuotaExhausted,
    RateLimited,
)
from fabric.contracts.job import Usage
from workers.engines import build
from workers.engines.anthropic import ANTHROPIC_URL, AnthropicEngine

KEY = "sk-ant-4711"
PROMPT = "the prompt that nobody else may read"
BODY = {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": PROMPT}]}
USAGE = {"input_tokens": 10, "cache_read_input_tokens": 4, "cache_creation_input_tokens": 2, "output_tokens": 1}
MESSAGE = {
    "id": "msg_theirs",
    "type": "message",
    "role": "assistant",
    "model": "claude-big-2026",
    "content": [{"type": "text", "text": "Hello"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {**USAGE, "output_tokens": 7},
}


def delta(text: str) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}


START = [
    {"type": "message_start", "message": {**MESSAGE, "content": [], "stop_reason": None, "usage": USAGE}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "ping"},
]
STREAM = [
    *START,
    delta("Hel"),
    delta("lo"),
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 7}},
    {"type": "message_stop"},
]


async def stream(wire: Any, events: list[dict[str, Any]], *, end: bool = True) -> None:
    """Events with their names, as Anthropic sends them."""
    await wire.head(200, "text/event-stream; charset=utf-8")
    for event in events:
        await wire.chunk(b"event: %b\ndata: %b\n\n" % (event["type"].encode(), orjson.dumps(event)))
    if end:
        await wire.end()


async def well(received: Any, wire: Any) -> None:
    if received.json.get("stream"):
        await stream(wire, STREAM)
    else:
        await wire.json(MESSAGE)


@pytest.fixture
async def provider(start_provider: Callable[..., Awaitable[Any]]) -> Any:
    return await start_provider(well)


@pytest.fixture
async def make_engine(provider: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[..., Any]]:
    monkeypatch.setenv("ANT_KEY", KEY)
    made = []

    async def make(**options: Any) -> AnthropicEngine:
        engine = AnthropicEngine(deployment(provider.url, options=options))
        await engine.start()
        made.append(engine)
        return engine

    yield make
    for engine in made:
        await engine.close()


def deployment(url: str | None, **more: Any) -> Deployment:
    values = {"engine": "anthropic", "tier": "cloud", "name": "ant", "model": "claude-big", "api_key_env": "ANT_KEY"}
    return Deployment(**{**values, "base_url": url, **more})


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
async def test_an_address_is_as_anthropics_own_clients_take_it(
    provider: Any, run: Any, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANT_KEY", KEY)
    engine = AnthropicEngine(deployment(provider.url.removesuffix("/v1") + suffix))
    await engine.start()
    await run(engine)({"messages": [{"role": "user", "content": "Hi"}]})
    await engine.close()
    (received,) = provider.received
    assert received.path == "/v1/messages"
    assert str(Anthropic(api_key=KEY, base_url=None).base_url).rstrip("/") == ANTHROPIC_URL


async def test_a_message(provider: Any, make_engine: Any, run: Any) -> None:
    answer = await run(await make_engine())({**BODY, "max_tokens": 9})

    (received,) = provider.received
    assert received.path == "/v1/messages"
    assert received.headers["x-api-key"] == KEY
    assert received.headers["anthropic-version"] == "2023-06-01"
    assert "authorization" not in received.headers
    assert received.json == {
        "model": "claude-big",
        "max_tokens": 9,
        "system": [{"type": "text", "text": "Be kind."}],
        "messages": [{"role": "user", "content": [{"type": "text", "text": PROMPT}]}],
    }
    assert not {"id", "model"} & set(answer.body)
    assert answer.body["choices"][0]["message"]["content"] == "Hello"
    assert answer.usage == Usage(input_tokens=16, output_tokens=7, cached_input_tokens=4)
    ChatCompletion.model_validate({"id": "x", "model": "m", "created": 1, **answer.body}, strict=True)


async def test_a_stream(provider: Any, make_engine: Any, run: Any) -> None:
    streamed = run(await make_engine())
    answer = await streamed(BODY, stream=True)

    chunks = [orjson.loads(chunk) for chunk in streamed.chunks]
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": "Hel"},
        {"content": "lo"},
        {},
    ]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    for chunk in chunks:
        ChatCompletionChunk.model_validate({"id": "x", "model": "m", "created": 1, **chunk}, strict=True)
    assert answer.usage == Usage(input_tokens=16, output_tokens=7, cached_input_tokens=4)
    assert answer.first_token_s is not None
    assert provider.received[0].json["stream"] is True


async def test_options(provider: Any, make_engine: Any, run: Any) -> None:
    engine = await make_engine(
        max_tokens=77,
        auth="bearer",
        headers={"anthropic-beta": "something-2026-01-01"},
        body={"cache_control": {"type": "ephemeral"}},
    )
    await run(engine)(BODY)
    (received,) = provider.received
    assert received.json["max_tokens"] == 77
    assert received.json["cache_control"] == {"type": "ephemeral"}
    assert received.headers["anthropic-beta"] == "something-2026-01-01"
    assert received.headers["authorization"] == f"Bearer {KEY}"
    assert "x-api-key" not in received.headers


async def test_connections_are_kept(provider: Any, make_engine: Any, run: Any) -> None:
    engine = await make_engine()
    for stream_ in (True, False, True):
        await run(engine)(BODY, stream=stream_)
    assert provider.connections == 1


async def test_what_the_api_can_not_do_is_not_sent(provider: Any, make_engine: Any, run: Any) -> None:
    engine = await make_engine()
    with pytest.raises(EngineUnsupported, match="`seed`"):
        await run(engine)({**BODY, "seed": 1})
    with pytest.raises(EngineUnsupported, match="no embeddings"):
        await run(engine)({"input": "x"}, endpoint="/v1/embeddings")
    with pytest.raises(EngineUnsupported, match="no completions"):
        await run(engine)({"prompt": "x"}, endpoint="/v1/completions", stream=True)
    assert provider.received == []


@pytest.mark.parametrize("stream_", [False, True])
@pytest.mark.parametrize(
    ("status", "kind", "message", "expected"),
    [
        (400, "invalid_request_error", "max_tokens: Field required", EngineRejected),
        (400, "invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum", ContextOverflow),
        (400, "invalid_request_error", "Your credit balance is too low to access the Anthropic API.", QuotaExhausted),
        (401, "authentication_error", "invalid x-api-key", ProviderAuth),
        (402, "billing_error", "pay", QuotaExhausted),
        (403, "permission_error", "no", ProviderAuth),
        (404, "not_found_error", "model: claude-big", ProviderMisconfigured),
        (413, "request_too_large", "too large", EngineRejected),
        (429, "rate_limit_error", "slow down", RateLimited),
        (500, "api_error", "oops", ProviderError),
        (504, "timeout_error", "late", ProviderError),
        (529, "overloaded_error", "Overloaded", ProviderError),
    ],
)
async def test_a_failure_has_a_name(
    provider: Any,
    make_engine: Any,
    run: Any,
    status: int,
    kind: str,
    message: str,
    expected: type[FabricError],
    stream_: bool,
) -> None:
    async def refuse(received: Any, wire: Any) -> None:
        error = {"type": kind, "message": f"{message} {PROMPT} {KEY}"}
        await wire.json({"type": "error", "error": error, "request_id": "req_1"}, status)

    provider.play = refuse
    with pytest.raises(FabricError) as caught:
        await run(await make_engine())(BODY, stream=stream_)
    assert type(caught.value) is expected
    assert PROMPT not in repr(caught.value.info)
    assert KEY not in repr(caught.value.info)


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("overloaded_error", ProviderError),
        ("api_error", ProviderError),
        ("rate_limit_error", RateLimited),
        ("timeout_error", ProviderTimeout),
        ("invalid_request_error", EngineRejected),
    ],
)
async def test_an_error_event(
    provider: Any, make_engine: Any, run: Any, kind: str, expected: type[FabricError], begun: bool
) -> None:
    async def fail(received: Any, wire: Any) -> None:
        error = {"type": "error", "error": {"type": kind, "message": PROMPT}}
        await stream(wire, [*START, *([delta("Hel")] if begun else []), error])

    provider.play = fail
    streamed = run(await make_engine())
    with pytest.raises(FabricError) as caught:
        await streamed(BODY, stream=True)
    assert type(caught.value) is (ProviderStreamBroken if begun else expected)
    assert len(streamed.chunks) == begun
    assert PROMPT not in repr(caught.value.info)


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        (START, ProviderError),
        ([*START, delta("Hel")], ProviderStreamBroken),
        (STREAM[:-1], ProviderStreamBroken),
        ([{"type": "message_stop"}], ProviderError),
        ([*START, {"type": "content_block_delta", "index": 0}], ProviderError),
    ],
)
@pytest.mark.parametrize("politely", [True, False])
async def test_a_stream_that_lacks_its_end(
    provider: Any, make_engine: Any, run: Any, events: Any, expected: type[FabricError], politely: bool
) -> None:
    async def cut(received: Any, wire: Any) -> None:
        await stream(wire, events, end=politely)
        if not politely:
            await asyncio.sleep(0)
            wire.cut()

    provider.play = cut
    with pytest.raises(FabricError) as caught:
        await run(await make_engine())(BODY, stream=True)
    assert type(caught.value) is expected


async def test_pings_are_no_tokens(provider: Any, make_engine: Any, run: Any) -> None:
    async def hang(received: Any, wire: Any) -> None:
        await stream(wire, START, end=False)
        while True:
            await wire.event({"type": "ping"})
            await asyncio.sleep(0.02)

    provider.play = hang
    with pytest.raises(ProviderTimeout, match="first_token_timeout_s"):
        await run(await make_engine(first_token_timeout_s=0.3))(BODY, stream=True)


async def test_an_overloaded_api_is_left_alone_as_long_as_it_says(provider: Any, make_engine: Any, run: Any) -> None:
    async def refuse(received: Any, wire: Any) -> None:
        error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
        await wire.json(error, 529, {"retry-after": "60"})

    engine = await make_engine()
    provider.play = refuse
    with pytest.raises(ProviderError) as caught:
        await run(engine)(BODY)
    assert caught.value.retry_after_s == 60
    assert engine.slots == 0


async def test_cancelling_closes_the_connection(provider: Any, make_engine: Any, run: Any) -> None:
    gone = asyncio.Event()

    async def talk(received: Any, wire: Any) -> None:
        await stream(wire, [*START, delta("Hel")], end=False)
        await wire.gone()
        gone.set()

    provider.play = talk
    streamed = run(await make_engine())
    task = asyncio.create_task(streamed(BODY, stream=True))
    await asyncio.wait_for(streamed.first.wait(), 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(gone.wait(), 30)


def test_build_knows_the_engine() -> None:
    engine = build(deployment(None))
    assert isinstance(engine, AnthropicEngine)
    assert engine.slots == 512


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"model": ""}, "`model` is missing"),
        ({"options": {"max_tokens": 0}}, "`options.max_tokens` is wrong"),
        ({"options": {"stream_usage": True}}, "unknown option `options.stream_usage`"),
        ({"api_key_env": None}, "`api_key_env`"),
        ({"api_key_env": "NOT_SET_ANYWHERE"}, "NOT_SET_ANYWHERE is not set or empty"),
    ],
)
async def test_what_is_wrong_is_named(more: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        await AnthropicEngine(deployment("https://localhost/v1", **more)).start()
    assert named in str(caught.value)


def test_what_is_played_here_is_what_the_official_sdk_reads() -> None:
    Message.model_validate(MESSAGE)
    events: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
    for event in STREAM:
        if event["type"] != "ping":
            events.validate_python(event)
