"""llama.cpp's errors in the fabric's words. Its own messages may quote the prompt: none of them is passed on."""

from __future__ import annotations

import re
from typing import Any

import orjson

from fabric.contracts.errors import ContextOverflow, EngineError, EngineRejected, EngineUnavailable, FabricError

#: Part of a message -> the parameter that it is about, and what to say.
_REFUSALS: tuple[tuple[str, str, str], ...] = (
    ("invalid tokens", "prompt", "The prompt holds tokens that the model doesn't have."),
    (
        "Jinja",
        "messages",
        "The model's chat template refuses these messages: it may want other roles or another order.",
    ),
    ("chat template", "messages", "The model's chat template refuses these messages."),
    ("JSON schema", "response_format", "llama.cpp can't make a grammar of this JSON schema."),
    ("grammar", "response_format", "llama.cpp can't read this grammar, or make one of this JSON schema."),
    ("samplers", "response_format", "llama.cpp can't hold this model's answers to a grammar."),
)
_FIELD = re.compile(r"^Field '(\w{1,40})'")
_TOKENS = re.compile(r"\((\d+) tokens\)")
_PARAMS = {"n_predict": "max_tokens", "n_probs": "logprobs", "n_cmpl": "n"}


def failure(status: int, body: bytes | dict[str, Any], text_param: str) -> FabricError:
    """``body``: what came with a status that isn't 200, or an error in the middle of a stream (status 0).

    ``text_param`` is the parameter that holds the request's text: ``messages``, ``prompt`` or ``input``.
    """
    error = _error(body)
    message = str(error.get("message", ""))
    kind = error.get("type")
    if kind == "exceed_context_size_error":
        return ContextOverflow(_too_long(error.get("n_prompt_tokens"), error.get("n_ctx")), param=text_param)
    if "too large to process" in message:
        found = _TOKENS.search(message)
        limit = re.search(r"batch size: (\d+)", message)
        return ContextOverflow(_too_long(found and found[1], limit and limit[1]), param=text_param)
    status = status or int(error.get("code") or 500)
    if kind == "unavailable_error" or status == 503:
        return EngineUnavailable("llama.cpp isn't ready yet.")
    if status >= 500 and kind != "not_supported_error":
        return EngineError(f"llama.cpp failed on this request (status {status}).")
    if field := _FIELD.match(message):
        param = _PARAMS.get(field[1], field[1])
        return EngineRejected(f"llama.cpp refuses the value of `{param}`.", param=param)
    for part, param, words in _REFUSALS:
        if part.lower() in message.lower():
            return EngineRejected(words, param=text_param if param in ("messages", "prompt") else param)
    return EngineRejected(f"llama.cpp refuses this request (status {status}).", param=text_param)


def _error(body: bytes | dict[str, Any]) -> dict[str, Any]:
    if isinstance(body, bytes):
        try:
            body = orjson.loads(body)
        except orjson.JSONDecodeError:
            return {}
    error = body.get("error") if isinstance(body, dict) else None
    return error if isinstance(error, dict) else {}


def _too_long(tokens: object, limit: object) -> str:
    has = f"The text has {tokens} tokens" if tokens else "The text has more tokens than fit"
    return f"{has}; this deployment takes {limit}." if limit else f"{has}."
