"""A streamed answer put together is the answer that wasn't streamed."""

from __future__ import annotations

from typing import Any

import orjson

from fabric.contracts.job import Usage
from fabric.gateway.assembled import assembled

CHAT = "/v1/chat/completions"


def token(*choices: dict[str, Any]) -> bytes:
    return orjson.dumps({"type": "token", "chunk": {"object": "chat.completion.chunk", "choices": choices}})


def delta(finish: str | None = None, index: int = 0, **fields: Any) -> dict[str, Any]:
    return {"index": index, "delta": fields, "finish_reason": finish}


def choices(*log: bytes, endpoint: Any = CHAT) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = orjson.loads(assembled(endpoint, log, Usage()))["choices"]
    return found


def test_a_text_in_pieces() -> None:
    log = [
        b'{"type":"queued","at":1}',
        token(delta(role="assistant", content="")),
        token(delta(content="Hel")),
        token(delta(content="lo")),
        token(delta("stop")),
    ]
    message = {"role": "assistant", "content": "Hello"}
    assert choices(*log) == [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}]


def test_several_answers_at_once() -> None:
    log = [token(delta(content="b", index=1)), token(delta(content="a"), delta("length", content="c", index=1))]
    assert [choice["message"]["content"] for choice in choices(*log)] == ["a", "bc"]


def test_calls_of_tools() -> None:
    first = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}
    log = [
        token(delta(tool_calls=[first])),
        token(delta(tool_calls=[{"index": 0, "function": {"arguments": '{"a"'}}])),
        token(delta(tool_calls=[{"index": 0, "function": {"arguments": ":1}"}}])),
        token(delta(tool_calls=[{"index": 1, "id": "c2", "function": {"name": "g", "arguments": "{}"}}])),
        token(delta("tool_calls")),
    ]
    (choice,) = choices(*log)
    assert choice["message"]["content"] is None
    assert choice["message"]["tool_calls"] == [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
        {"id": "c2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]


def test_thoughts_and_probabilities() -> None:
    log = [
        token({**delta(reasoning_content="hm"), "logprobs": {"content": [{"token": "a"}]}}),
        token({**delta(reasoning_content="m"), "logprobs": {"content": [{"token": "b"}]}}),
    ]
    (choice,) = choices(*log)
    assert choice["message"]["reasoning_content"] == "hmm"
    assert choice["logprobs"] == {"content": [{"token": "a"}, {"token": "b"}]}


def test_a_completion() -> None:
    log = [token({"index": 0, "text": "one "}), token({"index": 0, "text": "two", "finish_reason": "stop"})]
    assert choices(*log, endpoint="/v1/completions") == [
        {"index": 0, "text": "one two", "logprobs": None, "finish_reason": "stop"}
    ]


def test_of_a_replayed_job_only_the_last_run_counts() -> None:
    log = [token(delta(content="old")), b'{"type":"dead"}', b'{"type":"queued"}', token(delta(content="new"))]
    assert [choice["message"]["content"] for choice in choices(*log)] == ["new"]


def test_usage_is_the_engines() -> None:
    answer = orjson.loads(assembled(CHAT, [], Usage(3, 2, 1)))
    assert answer["object"] == "chat.completion"
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["total_tokens"]) == (3, 5)
