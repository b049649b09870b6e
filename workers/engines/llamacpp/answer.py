"""llama.cpp's answers -> OpenAI's, without what llama.cpp adds of its own. Pure.

An ``Assembly`` takes what comes for one job, from all of its requests: whole answers, or chunks of a
stream. Chunks it hands on as they come, or puts together where the caller wants one answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson

from fabric.contracts.job import Endpoint, Usage
from workers.engines.llamacpp.request import CHAT

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Wanted:
    """How the caller wants the answer. ``logprobs``: how many of the likeliest tokens; ``None``: none at all."""

    chat: bool
    stream: bool
    logprobs: int | None

    @classmethod
    def of(cls, endpoint: Endpoint, body: Json, *, stream: bool) -> Wanted:
        asked = body.get("logprobs")
        if endpoint == CHAT:
            return cls(True, stream, body.get("top_logprobs", 0) if asked else None)
        return cls(False, stream, asked)


@dataclass(slots=True)
class _Choice:
    """One choice so far."""

    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: dict[int, Json] = field(default_factory=dict)
    logprobs: list[Json] = field(default_factory=list)
    finish_reason: str | None = None
    characters: int = 0  #: of the text that the log probabilities belong to
    begun: bool = False


class Assembly:
    """The answer to one job."""

    def __init__(self, wanted: Wanted, emit: Callable[[bytes], None]) -> None:
        self.emitted = False  #: whether the caller has got a part of it
        self._wanted = wanted
        self._emit = emit
        self._choices: dict[int, _Choice] = {}
        self._read: dict[int, int] = {}  # prompt -> tokens
        self._cached: dict[int, int] = {}
        self._written = 0

    @property
    def has_text(self) -> bool:
        return any(choice.begun for choice in self._choices.values())

    @property
    def usage(self) -> Usage:
        """A prompt counts once, however many answers it gets."""
        return Usage(
            input_tokens=sum(self._read.values()),
            output_tokens=self._written,
            cached_input_tokens=sum(self._cached.values()),
        )

    def count(self, prompt: int, usage: Json) -> None:
        """``usage`` of one choice. All but a prompt's first choice find the prompt in the cache."""
        self._written += usage["completion_tokens"]
        self._read[prompt] = usage["prompt_tokens"]
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        self._cached[prompt] = min(cached, self._cached.get(prompt, cached))

    def whole(self, choices: list[Json], index: int) -> None:
        """An answer that came in one piece; ``index`` is its first choice's."""
        for number, choice in enumerate(choices):
            content = choice["message"] if self._wanted.chat else choice
            self._add(self._choice(index + number), content, choice)

    def chunk(self, choices: list[Json], index: int) -> None:
        """A part of a stream whose first choice is our number ``index``."""
        if not self._wanted.stream:
            for choice in choices:
                content = choice["delta"] if self._wanted.chat else choice
                self._add(self._choice(index + choice["index"]), content, choice)
            return
        ready = [part for choice in choices if (part := self._part(index + choice["index"], choice))]
        if ready:
            self.emitted = True
            kind = "chat.completion.chunk" if self._wanted.chat else "text_completion"
            self._emit(orjson.dumps({"object": kind, "choices": ready}))

    def body(self) -> Json:
        """The whole answer."""
        usage = self.usage
        chat = self._wanted.chat
        return {
            "object": "chat.completion" if chat else "text_completion",
            "choices": [self._finished(index, choice) for index, choice in sorted(self._choices.items())],
            "usage": {
                "prompt_tokens": usage.input_tokens,
                "completion_tokens": usage.output_tokens,
                "total_tokens": usage.total_tokens,
                "prompt_tokens_details": {"cached_tokens": usage.cached_input_tokens},
            },
        }

    def _choice(self, index: int) -> _Choice:
        return self._choices.setdefault(index, _Choice())

    def _add(self, choice: _Choice, content: Json, around: Json) -> None:
        """``content`` is a message, a delta or a completion's choice; ``around`` holds it."""
        if text := content.get("content" if self._wanted.chat else "text"):
            choice.texts.append(text)
        if thought := content.get("reasoning_content"):
            choice.thoughts.append(thought)
        for number, call in enumerate(content.get("tool_calls") or ()):
            _merge_call(choice.calls, call.get("index", number), call)
        choice.begun = choice.begun or bool(choice.texts or choice.thoughts or choice.calls)
        choice.logprobs += (around.get("logprobs") or {}).get("content") or ()
        choice.finish_reason = around.get("finish_reason") or choice.finish_reason

    def _part(self, index: int, source: Json) -> Json | None:
        """A choice of a chunk. llama.cpp's first, which only says who speaks, goes with the second."""
        choice = self._choice(index)
        finish = source.get("finish_reason")
        if self._wanted.chat:
            delta = {name: value for name, value in source["delta"].items() if value is not None}
            delta.pop("role", None)
            if not delta and not finish:
                return None
            if not choice.begun:
                delta = {"role": "assistant", "content": None if "tool_calls" in delta else "", **delta}
            part: Json = {"index": index, "delta": delta}
        else:
            if not source["text"] and not finish:
                return None
            part = {"index": index, "text": source["text"]}
        choice.begun = True
        content = (source.get("logprobs") or {}).get("content")
        part["logprobs"] = self._logprobs(choice, content) if content else None
        part["finish_reason"] = finish
        return part

    def _finished(self, index: int, choice: _Choice) -> Json:
        text = "".join(choice.texts)
        logprobs = None if self._wanted.logprobs is None else self._logprobs(choice, choice.logprobs)
        around = {"index": index, "logprobs": logprobs, "finish_reason": choice.finish_reason or "stop"}
        if not self._wanted.chat:
            return {**around, "text": text}
        message: Json = {"role": "assistant", "content": text or (None if choice.calls else "")}
        if choice.thoughts:
            message["reasoning_content"] = "".join(choice.thoughts)
        if choice.calls:
            message["tool_calls"] = [
                {"id": call["id"], "type": "function", "function": call["function"]}
                for _, call in sorted(choice.calls.items())
            ]
        return {**around, "message": message}

    def _logprobs(self, choice: _Choice, tokens: list[Json]) -> Json:
        top = self._wanted.logprobs or 0
        if self._wanted.chat:
            return {
                "content": [
                    {**_logprob(token), "top_logprobs": [_logprob(other) for other in token["top_logprobs"][:top]]}
                    for token in tokens
                ]
            }
        names = [_name(token) for token in tokens]
        offsets = []
        for token in tokens:
            offsets.append(choice.characters)
            choice.characters += len(token["token"])
        return {
            "tokens": names,
            "token_logprobs": [token["logprob"] for token in tokens],
            # The chosen token is always among them.
            "top_logprobs": [
                {_name(other): other["logprob"] for other in token["top_logprobs"][:top]} | {name: token["logprob"]}
                for name, token in zip(names, tokens, strict=True)
            ],
            "text_offset": offsets,
        }


def _merge_call(calls: dict[int, Json], number: int, part: Json) -> None:
    function = part.get("function") or {}
    call = calls.setdefault(number, {"id": "", "function": {"name": "", "arguments": ""}})
    call["id"] = part.get("id") or call["id"]
    call["function"]["name"] += function.get("name") or ""
    call["function"]["arguments"] += function.get("arguments") or ""


def _logprob(token: Json) -> Json:
    return {"token": token["token"], "logprob": token["logprob"], "bytes": token["bytes"]}


def _name(token: Json) -> str:
    """OpenAI's way to write a token that isn't text by itself."""
    text: str = token["token"]
    if "\ufffd" not in text or not token["bytes"]:
        return text
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token["bytes"])
