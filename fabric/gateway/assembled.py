"""A streamed answer put together again: what a job that streams has for a result. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import orjson

from fabric.contracts.job import Endpoint, Usage
from fabric.gateway.answer import openai_usage

_QUEUED = b'{"type":"queued"'
_TOKEN = b'{"type":"token"'


def assembled(endpoint: Endpoint, log: Iterable[bytes], usage: Usage) -> bytes:
    """``log``: the job's events. An engine's answer as it would have been without ``stream``."""
    chat = endpoint == "/v1/chat/completions"
    choices: dict[int, dict[str, Any]] = {}
    for body in log:
        if body.startswith(_QUEUED):  # replayed: what was said before doesn't count
            choices.clear()
        elif body.startswith(_TOKEN):
            for piece in orjson.loads(body)["chunk"].get("choices", ()):
                index = piece.get("index", 0)
                choice = choices.setdefault(index, _empty(index, chat=chat))
                _add(choice, piece)
    return orjson.dumps(
        {
            "object": "chat.completion" if chat else "text_completion",
            "choices": [choices[index] for index in sorted(choices)],
            "usage": openai_usage(asdict(usage)),
        }
    )


def _empty(index: int, *, chat: bool) -> dict[str, Any]:
    said: dict[str, Any] = {"message": {"role": "assistant", "content": None}} if chat else {"text": ""}
    return {"index": index, **said, "logprobs": None, "finish_reason": None}


def _add(choice: dict[str, Any], piece: dict[str, Any]) -> None:
    if "text" in piece:
        choice["text"] += piece["text"] or ""
    message = choice.get("message", {})
    for name, value in (piece.get("delta") or {}).items():
        if name == "tool_calls":
            _add_calls(message.setdefault(name, []), value or ())
        elif name == "role":
            message[name] = value or message[name]
        elif isinstance(value, str):
            message[name] = (message.get(name) or "") + value
    for name, values in (piece.get("logprobs") or {}).items():
        if isinstance(values, list):
            choice["logprobs"] = choice["logprobs"] or {}
            choice["logprobs"].setdefault(name, []).extend(values)
    choice["finish_reason"] = piece.get("finish_reason") or choice["finish_reason"]


def _add_calls(calls: list[dict[str, Any]], pieces: Iterable[dict[str, Any]]) -> None:
    """A call's name and id come first, its arguments in pieces after them."""
    for piece in pieces:
        index = piece.get("index", 0)
        while len(calls) <= index:
            calls.append({"id": None, "type": "function", "function": {"name": "", "arguments": ""}})
        call, function = calls[index], piece.get("function") or {}
        call["id"] = piece.get("id") or call["id"]
        for name in ("name", "arguments"):
            call["function"][name] += function.get(name) or ""
