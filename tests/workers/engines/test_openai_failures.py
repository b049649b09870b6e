"""What a provider does wrong, and the error that it becomes: whose fault, what next, and nothing of the prompt."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from fabric.contracts.catalog import Deployment
from fabric.contracts.errors import (
    BeyondProviderLimit,
    ContentRefused,
    ContextOverflow,
    EngineRejected,
    FabricError,
    ProviderAuth,
    ProviderError,
    ProviderMisconfigured,
    ProviderStreamBroken,
    ProviderTimeout,
    ProviderUnavailable,
    QuotaExhausted,
    RateLimited,
    StreamBroken,
)
from workers.engines.openai import OpenAIEngine

KEY = "sk-secret-4711"
PROMPT = "the prompt that nobody else may read"
BODY = {"messages": [{"role": "user", "content": PROMPT}]}
#: Providers do quote both.
QUOTING = f"Incorrect: {PROMPT}; {KEY}"
BEYOND = "Request too large for m in organization o on tokens per min (TPM): Limit 30000, Requested {}. Reduce it."


@pytest.fixture
async def provider(start_provider: Callable[..., Awaitable[Any]]) -> Any:
    async def nothing(received: Any, wire: Any) -> None:
        raise AssertionError("the test plays every answer")

    return await start_provider(nothing)


@pytest.fixture
async def make_engine(provider: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[..., Any]]:
    monkeypatch.setenv("BIG_KEY", KEY)
    made = []

    async def make(url: str | None = None, **options: Any) -> OpenAIEngine:
        values = {"engine": "openai", "tier": "cloud", "name": "big", "model": "gpt-big", "api_key_env": "BIG_KEY"}
        engine = OpenAIEngine(Deployment(**values, base_url=url or provider.url, options=options))
        await engine.start()
        made.append(engine)
        return engine

    yield make
    for engine in made:
        await engine.close()


async def failure(engine: OpenAIEngine, run: Any, *, stream: bool = False) -> FabricError:
    with pytest.raises(FabricError) as caught:
        await run(engine)(BODY, stream=stream)
    error = caught.value
    assert PROMPT not in repr(error.info)
    assert KEY not in repr(error.info)
    return error


def refused(**error: Any) -> dict[str, Any]:
    return {"error": {"message": QUOTING, "type": "invalid_request_error", "param": None, "code": None, **error}}


# Statuses.

OVERFLOW = {"message": "This model's maximum context length is 8192 tokens.", "code": 400, "type": "BadRequestError"}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, refused(param="temperature"), EngineRejected),
        (400, refused(code="context_length_exceeded", param="messages"), ContextOverflow),
        (400, {"object": "error", **OVERFLOW}, ContextOverflow),  # vLLM, before its errors had OpenAI's shape
        (400, refused(**OVERFLOW), ContextOverflow),
        (400, refused(code="content_filter"), ContentRefused),
        (400, [{"error": {"code": 400, "message": "API key not valid. Please pass one."}}], ProviderAuth),  # Gemini
        (400, refused(code="model_not_found"), ProviderMisconfigured),
        (401, refused(code="invalid_api_key"), ProviderAuth),
        (402, refused(code="402"), QuotaExhausted),
        (403, refused(), ProviderAuth),
        (404, refused(code="model_not_found"), ProviderMisconfigured),
        (405, b"", ProviderMisconfigured),
        (301, b"", ProviderMisconfigured),
        (408, refused(), ProviderTimeout),
        (409, refused(), ProviderError),
        (413, b"<html>too large</html>", EngineRejected),
        (422, {"detail": [{"msg": QUOTING}]}, EngineRejected),
        (425, b"", ProviderError),
        (429, refused(code="rate_limit_exceeded"), RateLimited),
        (429, refused(message=BEYOND.format(41_000)), BeyondProviderLimit),
        (429, refused(message=BEYOND.format(30_000)), RateLimited),
        (429, refused(code="insufficient_quota", type="insufficient_quota"), QuotaExhausted),
        (500, refused(type="server_error"), ProviderError),
        (502, b"<html>bad gateway</html>", ProviderError),
        (503, b"", ProviderError),
        (504, b"", ProviderError),
        (529, refused(type="overloaded_error"), ProviderError),
    ],
)
async def test_a_status_has_a_name(
    provider: Any, make_engine: Any, run: Any, status: int, body: Any, expected: type[FabricError], stream: bool
) -> None:
    async def refuse(received: Any, wire: Any) -> None:
        if isinstance(body, bytes):
            await wire.body(body, "text/html", status)
        else:
            await wire.json(body, status)

    provider.play = refuse
    error = await failure(await make_engine(), run, stream=stream)
    assert type(error) is expected
    assert f"HTTP {status}" in error.message


@pytest.mark.parametrize(
    ("kind", "fault", "retry", "fall_back"),
    [
        (EngineRejected, "caller", False, False),
        (ContextOverflow, "caller", False, True),
        (ContentRefused, "caller", False, True),
        (ProviderAuth, "provider", False, True),
        (ProviderMisconfigured, "provider", False, True),
        (QuotaExhausted, "provider", False, True),
        (RateLimited, "provider", True, True),
        (ProviderError, "provider", True, True),
        (ProviderTimeout, "provider", True, True),
        (ProviderUnavailable, "provider", True, True),
        (ProviderStreamBroken, "provider", False, False),
    ],
)
def test_each_name_says_whose_fault_and_what_next(
    kind: type[FabricError], fault: str, retry: bool, fall_back: bool
) -> None:
    info = kind("x").info
    assert (info.fault, info.retry, info.fall_back) == (fault, retry, fall_back)


async def test_the_providers_code_and_param_are_passed_on(provider: Any, make_engine: Any, run: Any) -> None:
    async def refuse(received: Any, wire: Any) -> None:
        await wire.json(refused(code="unsupported_value", param="messages[0].role"), 400)

    provider.play = refuse
    error = await failure(await make_engine(), run)
    assert error.param == "messages[0].role"
    assert error.message == (
        "The API of deployment 'big' refuses the request (HTTP 400, code unsupported_value, param messages[0].role)."
    )


async def test_codes_that_are_sentences_are_not_passed_on(provider: Any, make_engine: Any, run: Any) -> None:
    async def refuse(received: Any, wire: Any) -> None:
        await wire.json(refused(code=PROMPT, param=PROMPT, type=PROMPT), 400)

    provider.play = refuse
    error = await failure(await make_engine(), run)
    assert error.param is None


@pytest.mark.parametrize("status", [408, 429, 503, 529])
@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"date": "Wed, 21 Oct 2026 07:28:00 GMT", "retry-after": "Wed, 21 Oct 2026 07:28:30 GMT"}, 30.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "99999999"}, 86_400.0),
    ],
)
async def test_retry_after(
    provider: Any, make_engine: Any, run: Any, status: int, headers: dict[str, str], expected: float | None
) -> None:
    async def refuse(received: Any, wire: Any) -> None:
        await wire.json(refused(), status, headers)

    provider.play = refuse
    error = await failure(await make_engine(), run)
    assert error.retry
    assert error.retry_after_s == expected


# No answer at all.


async def test_nobody_listens(make_engine: Any, run: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        engine = await make_engine(f"http://127.0.0.1:{taken.getsockname()[1]}/v1")
        error = await failure(engine, run)
    assert type(error) is ProviderUnavailable
    assert "connection refused" in error.message


async def test_no_such_host(make_engine: Any, run: Any) -> None:
    error = await failure(await make_engine("http://no-such-host.invalid/v1"), run)
    assert type(error) is ProviderUnavailable
    assert "http://no-such-host.invalid" in error.message


async def test_a_certificate_that_nobody_vouches_for(
    start_provider: Any, certificate: Any, make_engine: Any, run: Any
) -> None:
    async def answer(received: Any, wire: Any) -> None:
        await wire.json({"choices": [{"index": 0, "message": {"role": "assistant", "content": "x"}}]})

    secure = await start_provider(answer, certificate.server)
    error = await failure(await make_engine(secure.url), run)
    assert type(error) is ProviderUnavailable
    assert "its certificate isn't trusted" in error.message
    assert secure.received == []

    trusting = await make_engine(secure.url, ca_file=str(certificate.file))
    assert (await run(trusting)(BODY)).body["choices"]

    # The certificate is for localhost.
    other_name = await make_engine(secure.url.replace("localhost", "127.0.0.1"), ca_file=str(certificate.file))
    assert "its certificate isn't trusted" in (await failure(other_name, run)).message


async def test_https_at_a_server_that_speaks_http(make_engine: Any, run: Any) -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(plain, "127.0.0.1", 0)
    async with server:
        engine = await make_engine(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
        error = await failure(engine, run)
    assert type(error) is ProviderUnavailable
    assert "TLS failed" in error.message


# Time.


async def test_no_connection_in_time(make_engine: Any, run: Any) -> None:
    silent = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)  # TLS never begins
    async with silent:
        engine = await make_engine(f"https://127.0.0.1:{silent.sockets[0].getsockname()[1]}/v1", connect_timeout_s=0.2)
        error = await failure(engine, run)
    assert type(error) is ProviderUnavailable
    assert "0.2 s (connect_timeout_s)" in error.message


def first_events() -> list[Any]:
    role = {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"role": "assistant"}}]}
    return [role, {"choices": [{"index": 0, "delta": {"content": "Hel"}}]}]


async def test_no_token_in_time(provider: Any, make_engine: Any, run: Any) -> None:
    async def hang(received: Any, wire: Any) -> None:
        await wire.events(first_events()[:1], end=False)  # a role is no token
        await wire.chunk(b": still thinking\n\n")
        await wire.gone()

    provider.play = hang
    streamed = run(await make_engine(first_token_timeout_s=0.3))
    with pytest.raises(ProviderTimeout, match="first_token_timeout_s"):
        await streamed(BODY, stream=True)
    assert streamed.chunks == []


async def test_no_head_in_time(provider: Any, make_engine: Any, run: Any) -> None:
    async def hang(received: Any, wire: Any) -> None:
        await wire.gone()

    provider.play = hang
    engine = await make_engine(first_token_timeout_s=0.3, total_timeout_s=0.6)
    assert "first_token_timeout_s" in (await failure(engine, run, stream=True)).message
    error = await failure(engine, run)
    assert type(error) is ProviderTimeout
    assert "total_timeout_s" in error.message


async def test_silence_between_tokens(provider: Any, make_engine: Any, run: Any) -> None:
    async def hang(received: Any, wire: Any) -> None:
        await wire.events(first_events(), end=False)
        await wire.chunk(b": still here\n\n")  # a comment is no token
        await wire.gone()

    provider.play = hang
    streamed = run(await make_engine(between_tokens_timeout_s=0.3))
    with pytest.raises(ProviderStreamBroken, match="between_tokens_timeout_s"):
        await streamed(BODY, stream=True)
    assert len(streamed.chunks) == 2


async def test_silence_in_the_middle_of_a_whole_answer(provider: Any, make_engine: Any, run: Any) -> None:
    async def hang(received: Any, wire: Any) -> None:
        await wire.raw(b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{"choi')
        await wire.gone()

    provider.play = hang
    error = await failure(await make_engine(between_tokens_timeout_s=0.3), run)
    assert type(error) is ProviderTimeout
    assert "between_tokens_timeout_s" in error.message


async def test_a_stream_that_never_ends(provider: Any, make_engine: Any, run: Any) -> None:
    async def babble(received: Any, wire: Any) -> None:
        await wire.events(first_events(), end=False)
        while True:
            await wire.event(first_events()[1])
            await asyncio.sleep(0.02)

    provider.play = babble
    streamed = run(await make_engine(total_timeout_s=0.5))
    with pytest.raises(ProviderStreamBroken, match="total_timeout_s"):
        await streamed(BODY, stream=True)


# Broken answers.


async def test_a_stream_cut_before_its_first_token_can_be_tried_again(
    provider: Any, make_engine: Any, run: Any
) -> None:
    async def cut(received: Any, wire: Any) -> None:
        await wire.events(first_events()[:1], end=False)
        wire.cut()

    provider.play = cut
    streamed = run(await make_engine())
    with pytest.raises(ProviderError) as caught:
        await streamed(BODY, stream=True)
    assert type(caught.value) is ProviderError
    assert streamed.chunks == []


@pytest.mark.parametrize("politely", [True, False])
async def test_a_stream_cut_after_its_first_token_is_broken(
    provider: Any, make_engine: Any, run: Any, politely: bool
) -> None:
    async def cut(received: Any, wire: Any) -> None:
        await wire.events(first_events(), end=politely)
        if not politely:
            wire.cut()

    provider.play = cut
    streamed = run(await make_engine())
    with pytest.raises(ProviderStreamBroken) as caught:
        await streamed(BODY, stream=True)
    assert caught.value.info.code == StreamBroken.code
    assert len(streamed.chunks) == 2


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"error": {"message": QUOTING, "type": "server_error", "code": None}}, ProviderError),
        ({"error": {"message": QUOTING, "code": 503}}, ProviderError),
        ({"error": {"message": QUOTING, "type": "rate_limit_exceeded"}}, RateLimited),
        ({"error": {"message": QUOTING, "code": "context_length_exceeded", "type": "invalid_request_error"}}, None),
        (b'{"choices": [{"index": 0, "del', ProviderError),
        (b"[1, 2]", ProviderError),
        ({"choices": "none"}, ProviderError),
        ({"choices": [{"index": 0, "delta": "Hel"}]}, ProviderError),
    ],
)
async def test_what_a_stream_must_not_hold(
    provider: Any, make_engine: Any, run: Any, event: Any, expected: type[FabricError] | None, begun: bool
) -> None:
    async def fail(received: Any, wire: Any) -> None:
        await wire.events([*first_events()[: 2 if begun else 1], event, b"[DONE]"])

    provider.play = fail
    error = await failure(await make_engine(), run, stream=True)
    assert type(error) is (ProviderStreamBroken if begun else expected or ContextOverflow)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("text/html", b"<html>Welcome to the hotel's wifi</html>"),
        ("", b"{}"),
        ("application/json", b""),
        ("application/json", b'{"choices": [{"index": 0, "mess'),
        ("application/json", b"[]"),
        ("application/json", b'{"choices": []}'),
        ("application/json", b'{"choices": 7}'),
        ("application/json", b'{"choices": ["x"]}'),
        ("text/event-stream", b""),
        ("text/event-stream", b"data: [DONE]\n\n"),
        ("text/event-stream", b"event: x\n\n"),
    ],
)
async def test_what_is_no_answer(
    provider: Any, make_engine: Any, run: Any, kind: str, body: bytes, stream: bool
) -> None:
    async def wrong(received: Any, wire: Any) -> None:
        await wire.body(body, kind)

    provider.play = wrong
    error = await failure(await make_engine(), run, stream=stream)
    assert type(error) is ProviderError


async def test_an_error_with_status_200(provider: Any, make_engine: Any, run: Any) -> None:
    async def fail(received: Any, wire: Any) -> None:
        await wire.json({"error": {"message": QUOTING, "code": 429}})

    provider.play = fail
    assert type(await failure(await make_engine(), run)) is RateLimited


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_is_too_large(provider: Any, make_engine: Any, run: Any, stream: bool) -> None:
    async def flood(received: Any, wire: Any) -> None:
        await wire.head(200, "text/event-stream" if stream else "application/json")
        while True:
            await wire.chunk(b": x\n" * 1000)

    provider.play = flood
    error = await failure(await make_engine(max_answer_bytes=100_000), run, stream=stream)
    assert type(error) is ProviderError
    assert "max_answer_bytes" in error.message


async def test_an_event_without_end(provider: Any, make_engine: Any, run: Any) -> None:
    async def flood(received: Any, wire: Any) -> None:
        await wire.head(200, "text/event-stream")
        await wire.chunk(b"data: ")
        while True:
            await wire.chunk(b"x" * 65536)

    provider.play = flood
    assert "an event of more than" in (await failure(await make_engine(), run, stream=True)).message


async def test_compression_that_nobody_asked_for(provider: Any, make_engine: Any, run: Any) -> None:
    async def squeeze(received: Any, wire: Any) -> None:
        assert received.headers["accept-encoding"] == "identity"
        await wire.body(b"\x1f\x8b", headers={"content-encoding": "gzip"})

    provider.play = squeeze
    assert "compressed" in (await failure(await make_engine(), run)).message


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-type: application/json\r\n\r\nzz\r\n",
        b"",
    ],
)
async def test_what_is_no_http(provider: Any, make_engine: Any, run: Any, data: bytes) -> None:
    async def noise(received: Any, wire: Any) -> None:
        if data:
            await wire.raw(data)
        else:
            wire.cut()
        await wire.gone()

    provider.play = noise
    assert type(await failure(await make_engine(), run)) is ProviderError


async def test_redirects_are_not_followed(provider: Any, start_provider: Any, make_engine: Any, run: Any) -> None:
    """They would carry the key and the prompt to wherever the answer says."""

    async def answer(received: Any, wire: Any) -> None:
        raise AssertionError("followed")

    elsewhere = await start_provider(answer)

    async def redirect(received: Any, wire: Any) -> None:
        await wire.body(b"", status=307, headers={"location": elsewhere.url})

    provider.play = redirect
    assert type(await failure(await make_engine(), run)) is ProviderMisconfigured
    assert elsewhere.received == []


async def test_nothing_of_prompt_and_key_is_logged(
    provider: Any, make_engine: Any, run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def refuse(received: Any, wire: Any) -> None:
        await wire.json(refused(), 500)

    caplog.set_level(logging.DEBUG)
    provider.play = refuse
    await failure(await make_engine(), run)
    assert PROMPT not in caplog.text
    assert KEY not in caplog.text
