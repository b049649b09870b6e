"""OpenAI bodies -> what llama.cpp's server is asked. Pure.

Every parameter that reaches an engine is honoured or refused by name here: llama.cpp drops what it
doesn't know, and some of what it knows, without a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fabric.contracts.errors import EngineRejected
from fabric.contracts.job import Endpoint

CHAT: Endpoint = "/v1/chat/completions"
COMPLETIONS: Endpoint = "/v1/completions"
EMBEDDINGS: Endpoint = "/v1/embeddings"

_CAPABILITY = {CHAT: "chat", COMPLETIONS: "completions", EMBEDDINGS: "embeddings"}
#: The parameter that holds the text.
TEXT_PARAM = {CHAT: "messages", COMPLETIONS: "prompt", EMBEDDINGS: "input"}

#: ``user`` says who asks: nothing that a model needs to know.
_SAMPLED = {
    *("n", "max_tokens", "temperature", "top_p", "presence_penalty", "frequency_penalty"),
    *("logit_bias", "seed", "stop", "user", "logprobs"),
}
_KNOWN = {
    CHAT: _SAMPLED
    | {"messages", "max_completion_tokens", "top_logprobs", "response_format"}
    | {"tools", "tool_choice", "parallel_tool_calls"},
    COMPLETIONS: _SAMPLED | {"prompt"},
    EMBEDDINGS: frozenset(("input", "encoding_format", "user")),
}
#: The same for llama.cpp as for OpenAI.
_AS_IT_IS = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "stop")
#: llama.cpp draws a seed of its own for the largest 32-bit number.
_SEEDS = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a loaded model can be asked. ``vocabulary``: its number of tokens, where known."""

    capabilities: frozenset[str]
    slots: int
    context: int
    vocabulary: int | None
    tools: bool  #: its chat template has a place for tools


@dataclass(frozen=True, slots=True)
class Ask:
    """One request to llama.cpp: ``n`` answers to the prompt number ``prompt``, choices from ``index`` on."""

    target: Endpoint
    body: dict[str, Any]
    n: int
    prompt: int
    index: int
    max_tokens: int | None
    #: llama.cpp gives these only whole, not as a stream. One at a time: of several it reports one's use.
    whole_only: bool = False


def generations(endpoint: Endpoint, body: dict[str, Any], able: Abilities, *, stream: bool) -> list[Ask]:
    """What to ask for a chat or a completion. Each fits the slots; together they answer the request.

    Raises:
        EngineRejected: names the parameter that this model or llama.cpp can't honour.
    """
    _check(endpoint, body, able)
    fields = _sampled(body, able)
    if endpoint == CHAT:
        prompts = [_chat(body, able)]
    else:
        prompts = [{"prompt": prompt} for prompt in _prompts(body["prompt"])]
        _known_tokens("prompt", (prompt["prompt"] for prompt in prompts), able)
    logprobs = body.get("logprobs")
    if logprobs is not None and logprobs is not False:  # a completion may ask for 0
        # The chosen token's own comes with the likeliest ones, so at least one of these is asked for.
        wanted = body.get("top_logprobs", 0) if endpoint == CHAT else logprobs
        fields |= (
            {"logprobs": True, "top_logprobs": max(1, wanted)} if endpoint == CHAT else {"logprobs": max(1, wanted)}
        )
    whole_only = "tools" in prompts[0] and "logprobs" in fields
    if whole_only and stream:
        raise EngineRejected("llama.cpp gives no `logprobs` in a stream with `tools`.", param="logprobs")
    return [
        Ask(
            endpoint,
            fields | prompt | _several(count, first, body.get("seed")),
            n=count,
            prompt=number,
            index=number * body.get("n", 1) + first,
            max_tokens=fields.get("max_tokens"),
            whole_only=whole_only,
        )
        for number, prompt in enumerate(prompts)
        for first, count in _groups(body.get("n", 1), 1 if whole_only else able.slots)
    ]


def inputs(body: dict[str, Any], able: Abilities) -> list[str | list[int]]:
    """The texts to embed.

    Raises:
        EngineRejected: names the parameter that this model can't honour.
    """
    _check(EMBEDDINGS, body, able)
    texts = _prompts(body["input"])
    _known_tokens("input", texts, able)
    return texts


def _check(endpoint: Endpoint, body: dict[str, Any], able: Abilities) -> None:
    capability = _CAPABILITY[endpoint]
    if capability not in able.capabilities:
        raise EngineRejected(f"This deployment doesn't do {capability}.", param="model")
    for name in body:
        if name not in _KNOWN[endpoint]:
            raise EngineRejected(f"The llamacpp engine doesn't know `{name}`.", param=name[:64])


def _sampled(body: dict[str, Any], able: Abilities) -> dict[str, Any]:
    fields = {name: body[name] for name in _AS_IT_IS if name in body}
    if limit := body.get("max_completion_tokens") or body.get("max_tokens"):
        fields["max_tokens"] = limit
    if body.get("presence_penalty") or body.get("frequency_penalty"):
        fields["repeat_last_n"] = able.context  # of the whole text, not of its last 64 tokens
    if bias := body.get("logit_bias"):
        if able.vocabulary is not None and any(int(token) >= able.vocabulary for token in bias):
            raise EngineRejected(
                f"`logit_bias` names a token that the model doesn't have: it has {able.vocabulary}.", param="logit_bias"
            )
        fields["logit_bias"] = bias
    return fields


def _several(count: int, first: int, seed: int | None) -> dict[str, Any]:
    """llama.cpp gives the answers of one request seeds in a row; the groups of a large request go on with it."""
    fields = {"n": count} if count > 1 else {}
    if seed is not None:
        fields["seed"] = (seed + first) % _SEEDS
    return fields


def _groups(n: int, most: int) -> Iterator[tuple[int, int]]:
    """First choice and number of choices of each group. llama.cpp takes no more at once than it has slots."""
    for first in range(0, n, most):
        yield first, min(most, n - first)


def _chat(body: dict[str, Any], able: Abilities) -> dict[str, Any]:
    messages = body["messages"]
    for message in messages:
        content = message.get("content")
        if isinstance(content, list) and any(part["type"] != "text" for part in content):
            raise EngineRejected("This model doesn't read images.", param="messages")
        if message.get("tool_calls") and not able.tools:
            raise EngineRejected("The model's chat template has no place for tool calls.", param="messages")
    return {"messages": messages} | _tools(body, able) | _format(body)


def _tools(body: dict[str, Any], able: Abilities) -> dict[str, Any]:
    tools, choice = body.get("tools"), body.get("tool_choice", "auto")
    if not tools:
        return {}
    if not able.tools:
        if choice == "none":
            return {}
        raise EngineRejected("The model's chat template has no place for tools.", param="tools")
    if isinstance(choice, dict):
        # llama.cpp takes a named choice for "auto"; with nothing else to call it has no choice either.
        name = choice["function"]["name"]
        tools, choice = [tool for tool in tools if tool["function"]["name"] == name], "required"
        if not tools:
            raise EngineRejected("`tool_choice` names a function that isn't among `tools`.", param="tool_choice")
    fields = {"tools": tools, "tool_choice": choice}
    if "parallel_tool_calls" in body:
        fields["parallel_tool_calls"] = body["parallel_tool_calls"]
    return fields


def _format(body: dict[str, Any]) -> dict[str, Any]:
    wanted = body.get("response_format") or {"type": "text"}
    if wanted["type"] == "text":
        return {}
    if body.get("tools") and body.get("tool_choice") != "none":
        raise EngineRejected("llama.cpp can't have both `tools` and a `response_format`.", param="response_format")
    if wanted["type"] == "grammar":
        return {"grammar": wanted["grammar"]}
    schema = wanted["json_schema"].get("schema") if wanted["type"] == "json_schema" else None
    if not schema:
        return {"response_format": {"type": "json_object"}}
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}}


def _prompts(value: Any) -> list[str | list[int]]:
    """One text or many, each as characters or as token ids."""
    if isinstance(value, str) or isinstance(value[0], int):
        return [value]
    return list(value)


def _known_tokens(param: str, texts: Any, able: Abilities) -> None:
    if able.vocabulary is None:
        return
    for text in texts:
        if isinstance(text, list) and max(text) >= able.vocabulary:
            raise EngineRejected(
                f"`{param}` holds a token that the model doesn't have: it has {able.vocabulary}.", param=param
            )
