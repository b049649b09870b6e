"""The texts of a request's body: every string that a model may see, and what can't be read as text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Any

import orjson

#: Token ids and numbers, not text.
_NO_TEXT = frozenset(("logit_bias",))
#: Written, but not seen. Left out, they don't help to write anything.
_UNSEEN = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u2060\u2061\u2062\u2063\u2064\ufeff\u180e"))
#: Fields whose values are words of the API, not anybody's.
_CODED = frozenset(("role", "type", "model", "id", "tool_call_id", "encoding_format", "tool_choice", "service_tier"))
#: Fields below which names of fields are the caller's own.
_FREE_JSON = frozenset(("parameters", "schema"))
#: What a JSON schema says of almost every field.
_SCHEMA_WORDS = frozenset(("object", "string", "integer", "number", "boolean", "array", "null"))
_ESCAPE = re.compile(r"\\u00([0-7][0-9A-Fa-f])")
_CONTROL = "\x00"


def strings(value: Any, key: str = "") -> Iterator[str]:
    """All strings inside, names of fields of free JSON included. Data of images is left out."""
    if isinstance(value, str):
        yield value
        if key == "arguments" and "\\" in value and (decoded := parsed(value)) is not None:
            yield from strings(decoded)
    elif isinstance(value, dict):
        if value.get("type") == "image_url" and "image_url" in value:
            return
        for name, inner in value.items():
            if name in _NO_TEXT:
                continue
            yield name
            yield from strings(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)


def prose(value: Any, key: str = "", *, free: bool = False) -> Iterator[str]:
    """Texts that somebody wrote, each for itself: what a reader needs who goes by the words around a name."""
    if isinstance(value, str):
        if key == "arguments" and isinstance(values := parsed(value), dict | list):
            yield from prose(values, free=True)
        elif (free or key not in _CODED) and value not in _SCHEMA_WORDS and any(map(str.isalpha, value)):
            yield value
    elif isinstance(value, dict):
        if value.get("type") == "image_url" and "image_url" in value:
            return
        free = free or key in _FREE_JSON
        for name, inner in value.items():
            # The name of a function or a format is an identifier; that of a message is somebody's.
            if name not in _NO_TEXT and (name != "name" or free or "role" in value):
                yield from prose(inner, name, free=free)
    elif isinstance(value, list):
        for inner in value:
            yield from prose(inner, key, free=free)


def parsed(arguments: str) -> Any:
    """A function's arguments as JSON; ``None`` when they aren't JSON (models write them)."""
    try:
        return orjson.loads(arguments)
    except ValueError:
        return None


def joined(body: dict[str, Any]) -> str:
    """All strings as one, so that one pass does. Nothing is found across the seams."""
    return _CONTROL.join(strings(body))


def images(body: dict[str, Any]) -> bool:
    return any(
        isinstance(part, dict) and part.get("type") == "image_url"
        for message in body.get("messages") or ()
        if isinstance(content := message.get("content"), list)
        for part in content
    )


def token_ids(body: dict[str, Any]) -> bool:
    """Whether the text came as numbers that only the model's vocabulary can read."""
    prompt = body.get("prompt", body.get("input"))
    return isinstance(prompt, list) and bool(prompt) and not isinstance(prompt[0], str)


def plain(text: str) -> str | None:
    """The text as readers take it: compatible forms of characters made one (full-width digits), unseen characters
    left out, JSON's escapes of ASCII resolved. ``None`` where nothing of that changes it."""
    same = text
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).translate(_UNSEEN)
    if "\\u00" in text:
        text = _ESCAPE.sub(lambda found: chr(int(found[1], 16)), text)
    return None if text == same else text
