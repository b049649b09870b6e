"""OpenAI's API in both directions, as the fabric speaks it inside. Pure.

Answers and chunks lose ``id``, ``model`` and what providers add of their own. Chunks are decoded once:
the usage is in them, and the end, and errors.
"""

from __future__ import annotations

from typing import Any

import orjson

from fabric.contracts.job import Endpoint, Usage
from fabric.contracts.tokens import estimate_tokens
from workers.engines.asking import ErrorEvent, NotTheProtocol, count, json_object

#: Of a body, a choice and the usage: the rest is the provider's own.
_CHOICE = ("index", "message", "delta", "text", "logprobs", "finish_reason")
_USAGE = (
    *("prompt_tokens", "completion_tokens", "total_tokens"),
    *("prompt_tokens_details", "completion_tokens_details"),
)
_SAYS = ("content", "tool_calls", "refusal", "reasoning_content")
#: vLLM and OpenRouter call it otherwise than the others.
_SAID_AS = {"reasoning": "reasoning_content"}
_CHUNK_OBJECT = {"/v1/chat/completions": "chat.completion.chunk", "/v1/completions": "text_completion"}
_OBJECT = {"/v1/chat/completions": "chat.completion", "/v1/completions": "text_completion", "/v1/embeddings": "list"}
#: Characters of a token where nobody counted tokens.
_CHARS_PER_TOKEN = 4
_DONE = b"[DONE]"


def request_body(
    body: dict[str, Any],
    model: str,
    *,
    stream: bool = False,
    stream_usage: bool = True,
    max_tokens_field: str | None = None,
    send_reasoning: bool = True,
    defaults: dict[str, Any] | None = None,
) -> bytes:
    """What is sent. ``defaults`` lie beneath the caller's fields. ``max_tokens_field``: of chats; completions have one
    name for it."""
    sent = {**(defaults or {}), **body, "model": model}
    if max_tokens_field and "messages" in body:
        for name in ("max_tokens", "max_completion_tokens"):
            if name in body:
                del sent[name]
                sent[max_tokens_field] = body[name]
    if not send_reasoning and "messages" in body:
        sent["messages"] = [
            {name: value for name, value in message.items() if name != "reasoning_content"}
            if "reasoning_content" in message
            else message
            for message in body["messages"]
        ]
    if stream:
        sent["stream"] = True
        if stream_usage:
            sent["stream_options"] = {"include_usage": True}
    return orjson.dumps(sent)


def whole_answer(endpoint: Endpoint, body: bytes) -> tuple[dict[str, Any], Usage | None]:
    """The answer as the fabric passes it on, and its usage; ``None`` where the API told none.

    Raises:
        NotTheProtocol: it isn't one.
        ErrorEvent: it is an error, although the status said otherwise.
    """
    values = _object(body)
    answer: dict[str, Any] = {"object": _OBJECT[endpoint]}
    if endpoint == "/v1/embeddings":
        answer["data"] = _list(values, "data")
    else:
        answer["choices"] = [_choice(choice) for choice in _list(values, "choices")]
        if not answer["choices"]:
            raise NotTheProtocol("an answer without choices")
        if values.get("system_fingerprint"):
            answer["system_fingerprint"] = values["system_fingerprint"]
    counters = values.get("usage") or {}
    usage = usage_of(counters)
    if usage is not None:
        answer["usage"] = {name: counters[name] for name in _USAGE if counters.get(name) is not None}
    return answer, usage


def usage_of(values: Any) -> Usage | None:
    """OpenAI's usage object. Some APIs count the reasoning in the total alone: the total is what is billed."""
    if not isinstance(values, dict):
        return None
    read, written, total = (count(values, name) for name in ("prompt_tokens", "completion_tokens", "total_tokens"))
    if not read and not written:
        return None
    cached = count(values.get("prompt_tokens_details"), "cached_tokens") or count(values, "prompt_cache_hit_tokens")
    return Usage(
        input_tokens=read,
        output_tokens=max(written, total - read),
        cached_input_tokens=min(cached, read),
        reasoning_tokens=count(values.get("completion_tokens_details"), "reasoning_tokens"),
    )


def told(usage: Usage) -> dict[str, Any]:
    """OpenAI's usage object."""
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_input_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def estimated_usage(body: dict[str, Any], written_tokens: int) -> Usage:
    """For an API that tells no usage: better a guess in the ledger than nothing."""
    read = estimate_tokens(orjson.dumps(body).decode())
    return Usage(input_tokens=read, output_tokens=written_tokens, estimated=True)


def written_tokens(answer: dict[str, Any]) -> int:
    """An estimate of what a whole answer's text would have cost."""
    texts = (choice.get("text") or (choice.get("message") or {}).get("content") for choice in answer.get("choices", ()))
    return sum(estimate_tokens(text) for text in texts if isinstance(text, str))


def choices_asked_for(body: dict[str, Any]) -> int:
    """How many answers a body asks for."""
    prompt = body.get("prompt")
    prompts = len(prompt) if isinstance(prompt, list) and not isinstance(prompt[0], int) else 1
    return prompts * int(body.get("n") or 1)


class StreamFold:
    """A ``Fold`` of one stream."""

    def __init__(self, endpoint: Endpoint, choices: int) -> None:
        """``choices``: how many answers were asked for."""
        self.usage: Usage | None = None
        self.begun = False
        self.ended = False
        self._characters = 0
        self._chunks = 0
        self._head = {"object": _CHUNK_OBJECT[endpoint]}
        self._held: list[bytes] = []
        self._open = choices

    @property
    def complete(self) -> bool:
        """Nothing is missing: ``[DONE]`` came, or a finish reason for every answer asked for."""
        return self.ended or self._open <= 0

    @property
    def written_tokens(self) -> int:
        """As far as one can tell from the text."""
        return max(self._chunks, self._characters // _CHARS_PER_TOKEN)

    def take(self, payload: bytes) -> list[bytes]:
        if payload == _DONE:
            self.ended = True
            return []
        values = _object(payload)
        usage = usage_of(values.get("usage"))
        if usage is not None:
            self.usage = usage
        choices = [_choice(choice) for choice in _list(values, "choices")]
        if not choices:  # the usage's own chunk, or a provider's remark
            return []
        for choice in choices:
            self._look(choice)
        chunk: dict[str, Any] = {**self._head, "choices": choices}
        if values.get("system_fingerprint"):
            chunk["system_fingerprint"] = values["system_fingerprint"]
        self._held.append(orjson.dumps(chunk))
        if not self.begun:
            return []
        chunks, self._held = self._held, []
        return chunks

    def _look(self, choice: dict[str, Any]) -> None:
        if choice.get("finish_reason"):
            self._open -= 1
            self.begun = True
        delta = choice.get("delta")
        text = choice.get("text") if delta is None else delta.get("content")
        if isinstance(text, str) and text:
            self._characters += len(text)
        elif delta is None or not any(delta.get(name) for name in _SAYS):
            return
        self._chunks += 1
        self.begun = True


def _object(body: bytes) -> dict[str, Any]:
    values = json_object(body)
    if values.get("error"):
        raise ErrorEvent(values)
    return values


def _list(values: dict[str, Any], name: str) -> list[Any]:
    found = values.get(name)
    if not isinstance(found, list):
        raise NotTheProtocol(f"an object without `{name}`")
    return found


def _choice(choice: Any) -> dict[str, Any]:
    if not isinstance(choice, dict):
        raise NotTheProtocol("a choice that isn't an object")
    kept = {name: choice[name] for name in _CHOICE if name in choice}
    for name in ("delta", "message"):
        said = kept.get(name)
        if isinstance(said, dict):
            kept[name] = {
                _SAID_AS.get(key, key): said[key] for key in said if said[key] is not None or key == "content"
            }
        elif name in kept:
            raise NotTheProtocol(f"a choice whose `{name}` isn't an object")
    return kept
