"""``stream: true``: tokens as they come, with a status that means something."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from fabric.contracts.errors import ContextOverflow, StreamBroken

if TYPE_CHECKING:
    from fabric.gateway import GatewaySettings
    from tests.gateway.conftest import Served, Worker

CHAT = "/v1/chat/completions"


def chat(text: str = "hi", **fields: Any) -> dict[str, Any]:
    return {"model": "small", "messages": [{"role": "user", "content": text}], "stream": True, **fields}


def data(lines: str) -> list[Any]:
    """The events of a whole stream, decoded."""
    events = [line.removeprefix("data: ") for line in lines.split("\n\n") if line.startswith("data: ")]
    return [event if event == "[DONE]" else json.loads(event) for event in events]


class TestTokens:
    def test_a_conversation(self, worker: Worker, client: openai.OpenAI) -> None:
        chunks = list(client.chat.completions.create(**chat("hello")))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "hello"
        assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1
        assert chunks[0].id.startswith("chatcmpl-")
        assert chunks[0].object == "chat.completion.chunk"

    def test_a_text(self, worker: Worker, client: openai.OpenAI) -> None:
        chunks = list(client.completions.create(model="small", prompt="once more", stream=True))
        assert "".join(chunk.choices[0].text for chunk in chunks) == "once more"
        assert chunks[0].id.startswith("cmpl-")

    def test_usage_comes_last_when_it_is_asked_for(self, worker: Worker, client: openai.OpenAI) -> None:
        *chunks, last = client.chat.completions.create(**chat(stream_options={"include_usage": True}))
        assert all(chunk.usage is None for chunk in chunks)
        assert last.choices == []
        assert last.usage is not None
        assert (last.usage.prompt_tokens, last.usage.completion_tokens, last.usage.total_tokens) == (3, 2, 5)
        assert last.usage.prompt_tokens_details is not None
        assert last.usage.prompt_tokens_details.cached_tokens == 1

    def test_it_ends_with_done(self, worker: Worker, http: httpx.Client) -> None:
        answer = http.post(CHAT, json=chat())
        assert data(answer.text)[-1] == "[DONE]"
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["cache-control"] == "no-cache"

    def test_each_token_comes_when_it_is_said(self, by_hand: Worker, gateway: Served) -> None:
        with streaming(gateway, chat()) as (stream, begin):
            begin()
            job = by_hand.next()
            job.say("one")
            assert "one" in next(stream)
            job.say("two")
            assert "two" in next(stream)
            job.succeed()
            assert next(stream) == "data: [DONE]\n\n"

    def test_a_burst_is_few_writes(self, by_hand: Worker, gateway: Served) -> None:
        with streaming(gateway, chat()) as (stream, begin):
            begin()
            job = by_hand.next()
            job.say("first")
            assert "first" in next(stream)
            job.say(*map(str, range(500)))
            job.succeed()
            writes = list(stream)
        assert [event["choices"][0]["delta"]["content"] for event in data("".join(writes))[:-1]] == [
            str(n) for n in range(500)
        ]
        assert len(writes) <= 50

    def test_where_it_runs_is_said_at_the_start(
        self, by_hand: Worker, gateway: Served, meanwhile: Callable[..., Future[Any]]
    ) -> None:
        with gateway.http() as http:
            request = http.build_request("POST", CHAT, json=chat())
            answer = meanwhile(http.send, request, stream=True)
            assert by_hand.next().give_up() == "queued"
            job = by_hand.next()
            job.say("x")
            headers = answer.result().headers
            job.succeed()
            answer.result().close()
        assert headers["x-fabric-job-id"] == job.spec.id
        assert (headers["x-fabric-tier"], headers["x-fabric-deployment"]) == ("cpu", "small-cpu")
        assert headers["x-fabric-attempts"] == "2"
        assert int(headers["x-fabric-queue-ms"]) >= 0

    def test_the_first_token_is_timed(self, worker: Worker, http: httpx.Client, gateway: Served) -> None:
        name = "fabric_time_to_first_token_seconds_count"
        before = gateway.metric(name)
        http.post(CHAT, json=chat())
        assert gateway.metric(name) == before + 1

    def test_silence_is_filled(
        self, by_hand: Worker, settings: GatewaySettings, serve: Callable[[GatewaySettings], Served]
    ) -> None:
        with streaming(serve(replace(settings, keep_alive_s=0.05)), chat()) as (stream, begin):
            begin()
            job = by_hand.next()
            job.say("x")
            assert "x" in next(stream)
            assert next(stream) == ": keep-alive\n\n"
            job.succeed()
            assert "data: [DONE]" in "".join(stream)

    def test_an_answer_without_a_token(self, worker: Worker, http: httpx.Client) -> None:
        worker.act = lambda job: job.succeed()
        answer = http.post(CHAT, json=chat())
        assert (answer.status_code, data(answer.text)) == (200, ["[DONE]"])


class TestFailures:
    def test_before_the_first_token_it_is_a_status(self, worker: Worker, client: openai.OpenAI) -> None:
        worker.act = lambda job: job.fail(ContextOverflow("Too long.", param="messages").info)
        with pytest.raises(openai.BadRequestError) as failed:
            client.chat.completions.create(**chat())
        assert failed.value.code == "context_length_exceeded"
        assert failed.value.response.headers["x-fabric-attempts"] == "1"

    def test_after_it_an_event(self, worker: Worker, client: openai.OpenAI, gateway: Served) -> None:
        before = gateway.metric("fabric_errors_total", fault="engine")

        def break_off(job: Any) -> None:
            job.say("half")
            job.fail(StreamBroken("The stream broke.").info)

        worker.act = break_off
        stream = iter(client.chat.completions.create(**chat()))
        assert next(stream).choices[0].delta.content == "half"
        with pytest.raises(openai.APIError) as failed:
            list(stream)
        assert failed.value.code == "stream_broken"
        assert gateway.metric("fabric_errors_total", fault="engine") == before + 1

    def test_a_stream_that_takes_too_long(
        self, by_hand: Worker, settings: GatewaySettings, serve: Callable[[GatewaySettings], Served]
    ) -> None:
        with streaming(serve(replace(settings, request_timeout_s=3.0)), chat()) as (stream, begin):
            begin()
            job = by_hand.next()
            job.say("x")
            told = data("".join(stream))
        assert told[-1]["error"]["code"] == "deadline_exceeded"
        assert by_hand.stopped() == job.spec.id


@contextmanager
def streaming(gateway: Served, body: dict[str, Any]) -> Iterator[tuple[Iterator[str], Callable[[], None]]]:
    """The HTTP chunks of a streamed answer, as they come; and what sends the request."""
    address = urlsplit(gateway.url)
    with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
        content = json.dumps(body).encode()
        head = (
            f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n"
        )
        file = connection.makefile("rb")

        def chunks() -> Iterator[str]:
            assert file.readline() == b"HTTP/1.1 200 OK\r\n"
            while file.readline() != b"\r\n":
                pass
            while size := int(file.readline(), 16):
                yield file.read(size).decode()
                file.readline()

        yield chunks(), lambda: connection.sendall(head.encode() + b"\r\n" + content)
