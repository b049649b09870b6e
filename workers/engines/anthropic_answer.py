"""From Anthropic's messages and their events to OpenAI answers and chunks. Pure."""

from __future__ import annotations

from typing import Any

import orjson

from fabric.contracts.job import Usage
from workers.engines.asking import ErrorEvent, NotTheProtocol, count, json_object
from workers.engines.openai_wire import told

#: Why the model stopped, in OpenAI's words. What isn't here is a normal end.
_FINISH = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_CHUNK = {"object": "chat.completion.chunk"}


def whole_answer(body: bytes) -> tuple[dict[str, Any], Usage]:
    """A message as a chat completion, and its usage.

    Raises:
        NotTheProtocol: it isn't one.
        ErrorEvent: it is an error, although the status said otherwise.
    """
    values = json_object(body)
    if values.get("type") == "error":
        raise ErrorEvent(values)
    blocks = values.get("content")
    if values.get("type") != "message" or not isinstance(blocks, list):
        raise NotTheProtocol("an object that isn't a message")
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for block in blocks:
        match block:
            case {"type": "text", "text": str(text)}:
                texts.append(text)
            case {"type": "thinking", "thinking": str(thought)}:
                thoughts.append(thought)
            case {"type": "tool_use", "id": str(id_), "name": str(name), "input": dict(values_)}:
                function = {"name": name, "arguments": orjson.dumps(values_).decode()}
                calls.append({"id": id_, "type": "function", "function": function})
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts) if texts or not calls else None}
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    usage = usage_of(values.get("usage"))
    finish = finish_reason(values.get("stop_reason"))
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
    return {"object": "chat.completion", "choices": [choice], "usage": told(usage)}, usage


def finish_reason(stop_reason: Any) -> str:
    return _FINISH.get(stop_reason, "stop") if isinstance(stop_reason, str) else "stop"


def usage_of(values: Any) -> Usage:
    """Anthropic counts what was read from and written to its cache beside the input, OpenAI within."""
    cached = count(values, "cache_read_input_tokens")
    details = values.get("output_tokens_details") if isinstance(values, dict) else None
    return Usage(
        input_tokens=count(values, "input_tokens") + cached + count(values, "cache_creation_input_tokens"),
        output_tokens=count(values, "output_tokens"),
        cached_input_tokens=cached,
        reasoning_tokens=count(details, "thinking_tokens"),
    )


class MessageFold:
    """A ``Fold`` of one streamed message."""

    def __init__(self) -> None:
        self.begun = False
        self.ended = False
        self._counters: dict[str, Any] = {}
        self._calls = 0
        #: Of the block that is open: whether it is a call, and whether its arguments have come.
        self._calling = False
        self._argued = False

    @property
    def complete(self) -> bool:
        return self.ended

    @property
    def usage(self) -> Usage:
        return usage_of(self._counters)

    def take(self, payload: bytes) -> list[bytes]:
        event = json_object(payload)
        match event:
            case {"type": "content_block_delta", "delta": dict(part)}:
                return self._delta(part)
            case {"type": "message_start", "message": dict(message)}:
                self._count(message.get("usage"))
            case {"type": "content_block_start", "content_block": dict(block)}:
                return self._start(block)
            case {"type": "content_block_stop"}:
                return self._stop()
            case {"type": "message_delta", "delta": dict(delta)}:
                self._count(event.get("usage"))
                if delta.get("stop_reason"):
                    return self._emit({}, finish_reason(delta["stop_reason"]))
            case {"type": "message_stop"}:
                self.ended = True
            case {"type": "error"}:
                raise ErrorEvent(event)
            case {"type": "message_start" | "content_block_start" | "content_block_delta" | "message_delta"}:
                raise NotTheProtocol("an event that lacks its content")
            case {"type": str()}:  # a ping, or what is new: by the API's versioning, events may be added
                pass
            case _:
                raise NotTheProtocol("an event without a type")
        return []

    def _start(self, block: dict[str, Any]) -> list[bytes]:
        self._calling = block.get("type") == "tool_use"
        self._argued = False
        if not self._calling:
            return []
        function = {"name": block.get("name"), "arguments": ""}
        self._calls += 1
        return self._emit(
            {
                "tool_calls": [
                    {"index": self._calls - 1, "id": block.get("id"), "type": "function", "function": function}
                ]
            }
        )

    def _delta(self, part: dict[str, Any]) -> list[bytes]:
        match part:
            case {"type": "text_delta", "text": str(text)} if text:
                return self._emit({"content": text})
            case {"type": "thinking_delta", "thinking": str(thought)} if thought:
                return self._emit({"reasoning_content": thought})
            case {"type": "input_json_delta", "partial_json": str(json)} if json and self._calling:
                return self._arguments(json)
        return []  # signatures and citations: OpenAI's chunks have no place for them

    def _stop(self) -> list[bytes]:
        """A call without arguments is an empty string there, and an empty object here."""
        chunks = self._arguments("{}") if self._calling and not self._argued else []
        self._calling = False
        return chunks

    def _arguments(self, json: str) -> list[bytes]:
        self._argued = True
        return self._emit({"tool_calls": [{"index": self._calls - 1, "function": {"arguments": json}}]})

    def _emit(self, delta: dict[str, Any], finish: str | None = None) -> list[bytes]:
        """The first chunk brings the role along."""
        if not self.begun:
            delta = {"role": "assistant", "content": None if "tool_calls" in delta else "", **delta}
            self.begun = True
        return [orjson.dumps({**_CHUNK, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})]

    def _count(self, counters: Any) -> None:
        """Counters are cumulative; those that a later event leaves out stay."""
        if isinstance(counters, dict):
            self._counters |= {name: value for name, value in counters.items() if value is not None}
