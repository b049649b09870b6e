"""The engine for OpenAI-compatible APIs: what is sent, what comes back, over real HTTP."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from openai import OpenAI
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from fabric import settings
from fabric.contracts.catalog import Deployment
from fabric.contracts.errors import ConfigError, ContentRefused
from fabric.contracts.job import Usage
from workers.engines import build
from workers.engines.openai import OPENAI_URL, OpenAIEngine, hosted_options
from workers.engines.openai_wire import request_body

KEY = "sk-secret-4711"
MESSAGES = {"messages": [{"role": "user", "content": "Hi"}]}
USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 5,
    "total_tokens": 14,
    "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 2},
}
#: What OpenAI's API adds to each chunk.
EXTRAS = {"service_tier": "default", "obfuscation": "x9a", "x_groq": {"id": "req_1"}}


def chunk(delta: dict[str, Any] | None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
    return {
        "id": "chatcmpl-theirs",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "gpt-big-2026",
        "choices": choices,
        **EXTRAS,
        **more,
    }


STREAM = [
    chunk({"role": "assistant", "content": ""}),
    chunk({"content": "Hel"}),
    chunk({"content": "lo"}),
    chunk({}, "stop"),
    chunk(None, usage=USAGE),
    b"[DONE]",
]


async def well(received: Any, wire: Any) -> None:
    """Answers as OpenAI's API does."""
    if received.path.startswith("/v1/embeddings"):
        vector: Any = [0.25, -0.5]
        if received.json.get("encoding_format") == "base64":
            vector = "AACAPgAAAL8="
        data = [{"object": "embedding", "index": 0, "embedding": vector}]
        usage = {"prompt_tokens": 3, "total_tokens": 3}
        await wire.json({"object": "list", "model": "embed-1", "data": data, "usage": usage})
    elif received.json.get("stream"):
        await wire.events(STREAM)
    else:
        chat = received.path.startswith("/v1/chat")
        content: dict[str, Any] = {"message": {"role": "assistant", "content": "Hello"}} if chat else {"text": "Hello"}
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": "stop", "native_finish_reason": "STOP"}
        kind = "chat.completion" if chat else "text_completion"
        usage = {**USAGE, "queue_time": 0.1}
        await wire.json(
            {"id": "theirs", "object": kind, "created": 1, "model": "gpt-big-2026", "choices": [choice], "usage": usage}
            | EXTRAS
        )


@pytest.fixture
async def provider(start_provider: Callable[..., Awaitable[Any]]) -> Any:
    return await start_provider(well)


@pytest.fixture
async def engine(provider: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[OpenAIEngine]:
    monkeypatch.setenv("BIG_KEY", KEY)
    engine = OpenAIEngine(deployment(provider.url))
    await engine.start()
    yield engine
    await engine.close()


def deployment(url: str | None, **more: Any) -> Deployment:
    values = {"engine": "openai", "tier": "cloud", "name": "big", "model": "gpt-big", "base_url": url}
    key = {} if "api_key_file" in more else {"api_key_env": "BIG_KEY"}
    return Deployment(**{**values, **key, **more})


# Answers.


async def test_a_chat_answer_is_passed_on_without_the_providers_own_words(engine: OpenAIEngine, run: Any) -> None:
    answer = await run(engine)(MESSAGES)

    assert answer.body == {
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello"},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": USAGE,
    }
    assert answer.usage == Usage(input_tokens=9, output_tokens=5, cached_input_tokens=4, reasoning_tokens=2)
    ChatCompletion.model_validate({"id": "x", "model": "m", "created": 1, **answer.body}, strict=True)


async def test_the_request_carries_the_key_the_providers_model_and_the_callers_fields(
    engine: OpenAIEngine, provider: Any, run: Any
) -> None:
    await run(engine)({**MESSAGES, "temperature": 0.5, "max_tokens": 7, "seed": 3})

    (received,) = provider.received
    assert received.path == "/v1/chat/completions"
    assert received.headers["authorization"] == f"Bearer {KEY}"
    assert received.json == {**MESSAGES, "temperature": 0.5, "max_tokens": 7, "seed": 3, "model": "gpt-big"}


async def test_a_stream_is_passed_on_chunk_by_chunk(engine: OpenAIEngine, provider: Any, run: Any) -> None:
    streamed = run(engine)
    answer = await streamed(MESSAGES, stream=True)

    chunks = [orjson.loads(chunk) for chunk in streamed.chunks]
    assert [c["choices"][0]["delta"].get("content") for c in chunks] == ["", "Hel", "lo", None]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    for each in chunks:
        assert set(each) == {"object", "choices"}
        ChatCompletionChunk.model_validate({"id": "x", "model": "m", "created": 1, **each}, strict=True)
    assert answer.body == {}
    assert answer.usage == Usage(input_tokens=9, output_tokens=5, cached_input_tokens=4, reasoning_tokens=2)
    assert answer.first_token_s is not None
    assert provider.received[0].json == {
        **MESSAGES,
        "model": "gpt-big",
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_completions(engine: OpenAIEngine, provider: Any, run: Any) -> None:
    answer = await run(engine)({"prompt": "Once"}, endpoint="/v1/completions")

    assert provider.received[0].path == "/v1/completions"
    assert answer.body["choices"][0]["text"] == "Hello"
    Completion.model_validate({"id": "x", "model": "m", "created": 1, **answer.body}, strict=True)


async def test_a_stream_of_several_completions_ends_without_done(engine: OpenAIEngine, provider: Any, run: Any) -> None:
    async def two(received: Any, wire: Any) -> None:
        def piece(index: int, text: str, finish: str | None = None) -> dict[str, Any]:
            return {"object": "text_completion", "choices": [{"index": index, "text": text, "finish_reason": finish}]}

        await wire.events([piece(0, "a"), piece(1, "b"), piece(1, "", "stop"), piece(0, "", "length")])

    provider.play = two
    streamed = run(engine)
    await streamed({"prompt": ["Once", "Twice"]}, endpoint="/v1/completions", stream=True)

    assert [orjson.loads(c)["choices"][0]["finish_reason"] for c in streamed.chunks] == [None, None, "stop", "length"]


@pytest.mark.parametrize("form", ["float", "base64"])
async def test_embeddings(engine: OpenAIEngine, provider: Any, run: Any, form: str) -> None:
    body = {"input": ["a word"], "encoding_format": form}
    answer = await run(engine)(body, endpoint="/v1/embeddings")

    assert provider.received[0].json == {**body, "model": "gpt-big"}
    assert answer.usage == Usage(input_tokens=3)
    assert answer.body["data"][0]["embedding"] == ([0.25, -0.5] if form == "float" else "AACAPgAAAL8=")
    if form == "float":
        CreateEmbeddingResponse.model_validate({"model": "m", **answer.body}, strict=True)


async def test_tool_calls_and_reasoning_come_through(engine: OpenAIEngine, provider: Any, run: Any) -> None:
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    deltas = [{"role": "assistant"}, {"reasoning_content": "hm"}, {"tool_calls": [call]}]

    async def calls(received: Any, wire: Any) -> None:
        await wire.events([*map(chunk, deltas), chunk({}, "tool_calls"), b"[DONE]"])

    provider.play = calls
    streamed = run(engine)
    await streamed(MESSAGES, stream=True)

    assert [orjson.loads(c)["choices"][0]["delta"] for c in streamed.chunks] == [*deltas, {}]


async def test_reasoning_that_is_only_in_the_total_is_billed(engine: OpenAIEngine, provider: Any, run: Any) -> None:
    async def outside(received: Any, wire: Any) -> None:
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 35}
        choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
        await wire.json({"choices": [choice], "usage": usage})

    provider.play = outside
    assert (await run(engine)(MESSAGES)).usage == Usage(input_tokens=10, output_tokens=25)


async def test_a_provider_that_tells_no_usage_is_billed_by_an_estimate(
    engine: OpenAIEngine, provider: Any, run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def silent(received: Any, wire: Any) -> None:
        await wire.events([chunk({"content": "x" * 400}), chunk({}, "stop"), b"[DONE]"])

    provider.play = silent
    usage = (await run(engine)({"messages": [{"role": "user", "content": "word " * 100}]}, stream=True)).usage
    await run(engine)(MESSAGES, stream=True)

    assert 50 < usage.input_tokens < 300
    assert usage.output_tokens == 100
    assert [r.message for r in caplog.records] == [
        "The API of deployment 'big' tells no usage: its tokens are estimated"
    ]


# Options.


async def test_azure_by_options(provider: Any, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIG_KEY", KEY)
    url = provider.url.replace("/v1", "/openai/deployments/mine")
    azure = OpenAIEngine(deployment(url, options={"auth": "api-key", "query": {"api-version": "2024-10-21"}}))
    await azure.start()
    await run(azure)({**MESSAGES}, endpoint="/v1/completions")
    await azure.close()

    (received,) = provider.received
    assert received.path == "/openai/deployments/mine/completions?api-version=2024-10-21"
    assert received.headers["api-key"] == KEY
    assert "authorization" not in received.headers


async def test_azures_streams_and_filters(
    start_provider: Callable[..., Awaitable[Any]], run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They begin with what was found in the prompt, and say of each piece what was found in it."""
    monkeypatch.setenv("BIG_KEY", KEY)
    found = {"hate": {"filtered": False, "severity": "safe"}}
    head = {**chunk(None), "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": found}]}
    said = chunk({"content": "Hello"})
    said["choices"][0]["content_filter_results"] = found

    async def play(received: Any, wire: Any) -> None:
        if "bad" in received.json["messages"][0]["content"]:
            inner = {"code": "ResponsibleAIPolicyViolation", "content_filter_result": found}
            error = {"message": "filtered", "code": "content_filter", "param": "prompt", "innererror": inner}
            await wire.json({"error": error}, 400)
        else:
            await wire.events([head, said, chunk({}, "stop"), chunk(None, usage=USAGE), b"[DONE]"])

    provider = await start_provider(play)
    url = provider.url.replace("/v1", "/openai/v1")
    azure = OpenAIEngine(deployment(url, options={"auth": "api-key"}))
    await azure.start()
    streamed = run(azure)
    answer = await streamed(MESSAGES, stream=True)
    with pytest.raises(ContentRefused):
        await run(azure)({"messages": [{"role": "user", "content": "bad"}]})
    await azure.close()

    assert provider.received[0].path == "/openai/v1/chat/completions"
    assert answer.usage == Usage(input_tokens=9, output_tokens=5, cached_input_tokens=4, reasoning_tokens=2)
    chunks = [orjson.loads(one) for one in streamed.chunks]
    assert "".join(one["choices"][0]["delta"].get("content", "") for one in chunks) == "Hello"
    assert all(found not in one.values() and "content_filter_results" not in one["choices"][0] for one in chunks)


@pytest.mark.parametrize(
    ("url", "options", "expected"),
    [
        (None, {}, "max_completion_tokens"),  # OpenAI's newer models refuse the other name
        ("https://api.openai.com/v1/", {}, "max_completion_tokens"),
        ("https://api.openai.com/v1", {"max_tokens_field": "max_tokens"}, "max_tokens"),
        ("https://api.groq.com/openai/v1", {}, None),
    ],
)
def test_the_limit_of_an_answer_has_the_name_that_the_api_knows(
    url: str | None, options: dict[str, str], expected: str | None
) -> None:
    assert hosted_options(deployment(url, options=options)).max_tokens_field == expected
    assert str(OpenAI(api_key=KEY, base_url=None).base_url).rstrip("/") == OPENAI_URL
    sent = orjson.loads(request_body({"messages": [], "max_tokens": 5}, "m", max_tokens_field=expected))
    assert sent == {"messages": [], "model": "m", expected or "max_tokens": 5}
    # Completions have one name for it.
    sent = orjson.loads(request_body({"prompt": "x", "max_tokens": 5}, "m", max_tokens_field=expected))
    assert sent == {"prompt": "x", "model": "m", "max_tokens": 5}


def test_the_recipes_of_the_documentation_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[3] / "docs" / "hosted-apis.md").read_text("utf-8")
    recipes = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(recipes) == 2
    for recipe in recipes:
        (tmp_path / "fabric.yaml").write_text(recipe)
        for place in settings.load(tmp_path / "fabric.yaml", {}).catalog.by_deployment.values():
            monkeypatch.setenv(place.api_key_env or "", KEY)
            assert build(place).slots > 0


async def test_options_shape_the_request(provider: Any, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIG_KEY", KEY)
    options = {
        "headers": {"X-Title": "fabric"},
        "body": {"provider": {"data_collection": "deny"}, "temperature": 0.1},
        "max_tokens_field": "max_completion_tokens",
        "stream_usage": False,
    }
    router = OpenAIEngine(deployment(provider.url, options=options))
    await router.start()
    said = {"role": "assistant", "content": "I", "reasoning_content": "secret thoughts"}
    await run(router)({"messages": [said], "max_tokens": 5, "temperature": 0.9}, stream=True)
    await router.close()

    (received,) = provider.received
    assert received.headers["x-title"] == "fabric"
    assert received.json == {
        "provider": {"data_collection": "deny"},
        "temperature": 0.9,
        "messages": [{"role": "assistant", "content": "I"}],
        "max_completion_tokens": 5,
        "model": "gpt-big",
        "stream": True,
    }


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"retries": 3}, "unknown option `options.retries`"),
        ({"total_timeout_s": "soon"}, "`options.total_timeout_s` is wrong"),
        ({"total_timeout_s": -1}, "`options.total_timeout_s` is wrong"),
        ({"headers": {"Authorization": "Bearer sk-1"}}, "api_key_env"),
        ({"headers": {"x": "a\r\nb: c"}}, "`options.headers.x` is wrong"),
        ({"body": {"stream": True}}, "`stream` is written by the fabric"),
        ({"ca_file": "/nowhere.pem"}, "`options.ca_file` can't be used"),
        ({"proxy": "socks5://x"}, "`options.proxy` is wrong"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        OpenAIEngine(deployment("https://localhost/v1", options=options))
    assert named in str(caught.value)
    assert "sk-1" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["localhost:80", "ftp://x/v1", "https:///v1", "https://u:p@x/v1", "https://x/v1?key=sk-1"]
)
def test_a_wrong_address_is_refused_without_quoting_it(url: str) -> None:
    with pytest.raises(ConfigError, match="base_url") as caught:
        OpenAIEngine(deployment(url))
    assert url not in str(caught.value)


def test_a_deployment_needs_a_model() -> None:
    with pytest.raises(ConfigError, match="`model` is missing"):
        OpenAIEngine(deployment(None, model=""))


def test_build_knows_the_engine() -> None:
    engine = build(deployment(None))
    assert isinstance(engine, OpenAIEngine)
    assert engine.slots == 512
    assert build(deployment(None, slots=7)).slots == 7


# Keys.


async def test_a_key_from_a_file(provider: Any, run: Any, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"  {KEY}\n")
    engine = OpenAIEngine(deployment(provider.url, api_key_file=str(file)))
    await engine.start()
    await run(engine)(MESSAGES)
    await engine.close()
    assert provider.received[0].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("more", "value", "named"),
    [
        ({}, None, "BIG_KEY is not set or empty"),
        ({}, "  ", "BIG_KEY is not set or empty"),
        ({}, "two words", "BIG_KEY doesn't hold a key"),
        ({}, "sk\r\nx-evil: 1", "BIG_KEY doesn't hold a key"),
        ({"api_key_file": "/nowhere/key"}, None, "/nowhere/key: No such file"),
        ({"api_key_env": None}, None, "`api_key_env`"),
        ({"options": {"auth": "none"}}, "sk-1", "`options.auth` is none"),
    ],
)
async def test_a_missing_key_is_named_by_its_place(
    monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], value: str | None, named: str
) -> None:
    monkeypatch.delenv("BIG_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("BIG_KEY", value)
    engine = OpenAIEngine(deployment("https://localhost/v1", **more))
    with pytest.raises(ConfigError) as caught:
        await engine.start()
    assert named in str(caught.value)
    assert value is None or not value.strip() or value not in str(caught.value)


def test_a_key_has_one_source() -> None:
    with pytest.raises(ValueError, match="only one of"):
        Deployment(engine="openai", tier="cloud", api_key_env="A", api_key_file="b")


async def test_the_key_is_in_no_repr_and_no_log(
    engine: OpenAIEngine, run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    await run(engine)(MESSAGES)
    seen = [repr(engine), repr(engine.deployment), repr(vars(engine)), caplog.text]
    assert not any(KEY in text for text in seen)


async def test_a_key_in_the_clear_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("BIG_KEY", KEY)
    engine = OpenAIEngine(deployment("http://192.0.2.1/v1"))
    await engine.start()
    await engine.close()
    assert "unencrypted at http://192.0.2.1: use https" in caplog.text


# Many at once.


async def test_requests_run_side_by_side(engine: OpenAIEngine, provider: Any, run: Any) -> None:
    everyone = asyncio.Barrier(64)

    async def together(received: Any, wire: Any) -> None:
        await everyone.wait()  # nobody is answered before all are here
        await well(received, wire)

    provider.play = together
    answers = await asyncio.gather(*(run(engine)(MESSAGES, stream=bool(i % 2)) for i in range(64)))
    assert len(answers) == 64
    assert provider.connections == 64
