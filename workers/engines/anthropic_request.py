"""From an OpenAI chat body to the body of Anthropic's Messages API. Pure.

What the API has no word for is refused by name, never left out. Three things take another form:
system and developer messages, wherever they stand, become the one system prompt; neighbours of the same
role become one message; the reasoning of earlier turns, which the API takes back only with its own
signature, is not sent.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import Any

import orjson

from fabric.contracts.errors import EngineUnsupported

Block = dict[str, Any]

#: Parameters that the API doesn't have, and the value at which they change nothing.
_OFF: dict[str, Any] = {
    "n": 1,
    "logprobs": False,
    "top_logprobs": None,
    "seed": None,
    "logit_bias": {},
    "presence_penalty": 0,
    "frequency_penalty": 0,
}
_TRANSLATED = frozenset(
    (
        *("messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "stop", "user"),
        *("tools", "tool_choice", "parallel_tool_calls", "response_format"),
    )
)
_MEDIA_TYPES = ("image/jpeg", "image/png", "image/gif", "image/webp")
_DATA_URL = re.compile(r"data:(image/[a-z0-9.+-]+);base64,")
_TOOL_ID = re.compile(r"[A-Za-z0-9_-]{1,256}")


def message_body(
    body: dict[str, Any], model: str, *, max_tokens: int, stream: bool = False, defaults: dict[str, Any] | None = None
) -> dict[str, Any]:
    """``max_tokens``: where the caller sets no limit; the API wants one. ``defaults`` lie beneath everything.

    Raises:
        EngineUnsupported: the API can't do what a field asks for; ``param`` names it.
    """
    for name, value in body.items():
        if name not in _TRANSLATED and not (name in _OFF and value == _OFF[name]):
            raise _cannot(name)
    system, messages = _conversation(body["messages"])
    sent: dict[str, Any] = {
        **(defaults or {}),
        "model": model,
        "max_tokens": body.get("max_completion_tokens") or body.get("max_tokens") or max_tokens,
        "messages": messages,
    }
    if system:
        sent["system"] = system
    if (temperature := body.get("temperature")) is not None:
        if temperature > 1:
            raise _cannot("temperature", "it is at most 1 there")
        sent["temperature"] = temperature
    if "top_p" in body:
        sent["top_p"] = body["top_p"]
    if stop := body.get("stop"):
        sent["stop_sequences"] = [stop] if isinstance(stop, str) else stop
    if "user" in body:
        sent["metadata"] = {"user_id": body["user"]}
    if tools := body.get("tools"):
        sent["tools"] = [_tool(tool["function"]) for tool in tools]
        if choice := _tool_choice(body.get("tool_choice"), body.get("parallel_tool_calls")):
            sent["tool_choice"] = choice
    if format_ := _output_format(body.get("response_format")):
        sent["output_config"] = {**sent.get("output_config", {}), "format": format_}
    if stream:
        sent["stream"] = True
    return sent


def _cannot(param: str, why: str = "") -> EngineUnsupported:
    reason = f": {why}" if why else ""
    return EngineUnsupported(f"Anthropic's API can't do what `{param}` asks for{reason}.", param=param)


# Messages.


def _conversation(messages: list[dict[str, Any]]) -> tuple[list[Block], list[dict[str, Any]]]:
    """The system prompt and the messages, in turns."""
    system: list[Block] = []
    turns: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        at = f"messages[{index}]"
        if message.get("name") is not None:
            raise _cannot(f"{at}.name", "its messages have no names")
        if message["role"] in ("system", "developer"):
            system += _texts(message["content"])
            continue
        role, blocks = _turn(message, at)
        if not blocks:
            raise _cannot(f"{at}.content", "its messages can't be empty")
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": role, "content": blocks})
    if not turns or turns[0]["role"] != "user":
        raise _cannot("messages", "the first message after the system's must be the user's")
    return system, turns


def _turn(message: dict[str, Any], at: str) -> tuple[str, list[Block]]:
    if message["role"] == "tool":
        result: Block = {"type": "tool_result", "tool_use_id": _tool_id(message["tool_call_id"])}
        if texts := _texts(message["content"]):
            result["content"] = texts
        return "user", [result]
    if message["role"] == "assistant":
        calls = message.get("tool_calls") or ()
        uses = [_tool_use(call, f"{at}.tool_calls[{number}]") for number, call in enumerate(calls)]
        return "assistant", [*_texts(message.get("content")), *uses]
    content = message["content"]
    if isinstance(content, str):
        return "user", _texts(content)
    return "user", [block for number, part in enumerate(content) for block in _part(part, f"{at}.content[{number}]")]


def _texts(content: str | list[dict[str, Any]] | None) -> list[Block]:
    """Text blocks, without empty ones: the API refuses those."""
    texts = [content] if isinstance(content, str) else [part["text"] for part in content or ()]
    return [{"type": "text", "text": text} for text in texts if text]


def _part(part: dict[str, Any], at: str) -> list[Block]:
    if part["type"] == "text":
        return _texts(part["text"])
    image = part["image_url"]
    if image.get("detail") not in (None, "auto"):
        raise _cannot(f"{at}.image_url.detail", "it chooses the resolution itself")
    found = _DATA_URL.match(image["url"])
    media_type = found[1].replace("image/jpg", "image/jpeg") if found else ""
    if not found or media_type not in _MEDIA_TYPES:
        raise _cannot(f"{at}.image_url.url", f"it takes {', '.join(_MEDIA_TYPES)}")
    source = {"type": "base64", "media_type": media_type, "data": image["url"][found.end() :]}
    return [{"type": "image", "source": source}]


def _tool_use(call: dict[str, Any], at: str) -> Block:
    arguments = call["function"]["arguments"]
    try:
        values = orjson.loads(arguments) if arguments.strip() else {}
    except orjson.JSONDecodeError:
        values = None
    if not isinstance(values, dict):
        raise _cannot(f"{at}.function.arguments", "they must be a JSON object there")
    return {"type": "tool_use", "id": _tool_id(call["id"]), "name": call["function"]["name"], "input": values}


def _tool_id(name: str) -> str:
    """Ids in the API's alphabet; others are replaced by a digest, in the call and in its result alike."""
    return name if _TOOL_ID.fullmatch(name) else f"call_{blake2b(name.encode(), digest_size=16).hexdigest()}"


# Tools and formats.


def _tool(function: dict[str, Any]) -> dict[str, Any]:
    tool = {"name": function["name"], "input_schema": {"type": "object", **(function.get("parameters") or {})}}
    if function.get("description"):
        tool["description"] = function["description"]
    if function.get("strict"):
        tool["strict"] = True
    return tool


def _tool_choice(choice: str | dict[str, Any] | None, parallel: bool | None) -> dict[str, Any] | None:
    if choice == "none":
        return {"type": "none"}
    if isinstance(choice, dict):
        chosen = {"type": "tool", "name": choice["function"]["name"]}
    elif choice == "required":
        chosen = {"type": "any"}
    elif choice == "auto" or parallel is False:
        chosen = {"type": "auto"}
    else:
        return None
    return {**chosen, "disable_parallel_tool_use": True} if parallel is False else chosen


def _output_format(wanted: dict[str, Any] | None) -> dict[str, Any] | None:
    if wanted is None or wanted["type"] == "text":
        return None
    schema = wanted.get("json_schema", {}).get("schema")
    if schema is None:
        raise _cannot("response_format", "it answers in JSON by a schema only: use `json_schema` with a `schema`")
    return {"type": "json_schema", "schema": schema}
