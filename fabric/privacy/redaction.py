"""From a body to the one that may leave: what was found is replaced by placeholders, the same by the same.

A placeholder is ``<EMAIL_1>``: the entity, and a number that counts from 1 and leaves out whatever already
stands in the caller's own text, so that nothing of theirs is ever put back as something else.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, NamedTuple

import orjson

from fabric.privacy.reading import NOTHING, Reading
from fabric.privacy.scanner import Scanner, disjoint
from fabric.privacy.texts import joined, parsed, plain, prose

#: Fields whose text may be any. A find elsewhere (in names, ids, keys) can't be replaced without breaking the request.
_FREE = frozenset(
    ("content", "text", "description", "reasoning_content", "prompt", "input", "stop", "user", "parameters", "schema")
)
_LOOKALIKE = re.compile(r"<[A-Z][A-Z0-9_]*_[0-9]+>")


class Redacted(NamedTuple):
    body: dict[str, Any]
    #: Placeholder -> what it hides.
    placeholders: dict[str, str]


class NotRedactable(Exception):
    """Something was found where it can't be replaced, or can't be told not to be there."""


def redact(body: dict[str, Any], scanner: Scanner, kept: Collection[str] = (), reading: Reading = NOTHING) -> Redacted:
    """The body without what ``scanner`` finds, and ``reading`` has found. ``kept``: entities that may stay.

    Raises:
        NotRedactable: the outcome isn't known to be free of finds.
    """
    if reading.failed.difference(kept) or (reading.names and any(map(reading.hidden, prose(body)))):
        raise NotRedactable
    text = joined(body)
    names = _Names({*_LOOKALIKE.findall(text), *_LOOKALIKE.findall(plain(text) or "")})
    pass_ = _Pass(scanner, names, frozenset(kept), reading)
    clean: dict[str, Any] = pass_.of(body, "", free=False)
    # Looked at again, as readers would take it: what only shows then stays here.
    left = joined(clean)
    for version in (left, plain(left)):
        if version is not None and pass_.finds(_LOOKALIKE.sub("<>", version)):
            raise NotRedactable
    return Redacted(clean, names.placeholders)


class _Names:
    """Placeholders by what they hide."""

    def __init__(self, taken: set[str]) -> None:
        self.placeholders: dict[str, str] = {}
        self._taken = taken
        self._known: dict[tuple[str, str], str] = {}
        self._last: dict[str, int] = {}

    def of(self, entity: str, value: str) -> str:
        known = self._known.get((entity, value))
        if known is not None:
            return known
        number = self._last.get(entity, 0) + 1
        while (name := f"<{entity.upper()}_{number}>") in self._taken:
            number += 1
        self._last[entity] = number
        self._known[entity, value] = name
        self.placeholders[name] = value
        return name


class _Pass:
    def __init__(self, scanner: Scanner, names: _Names, kept: frozenset[str], reading: Reading) -> None:
        self._scanner = scanner
        self._names = names
        self._kept = kept
        self._reading = reading

    def finds(self, text: str) -> bool:
        found, failed = self._scanner.names(text.encode())
        return bool((found | failed) - self._kept) or bool(self._reading.find(text))

    def of(self, value: Any, key: str, *, free: bool) -> Any:
        if isinstance(value, str):
            if key == "arguments":
                return self._arguments(value)
            if free or key in _FREE:
                return self._text(value)
            if self.finds(value):
                raise NotRedactable
            return value
        if isinstance(value, dict):
            if value.get("type") == "image_url":
                raise NotRedactable
            free = free or key in _FREE
            if any(map(self.finds, value)):
                raise NotRedactable
            return {name: self.of(inner, name, free=free) for name, inner in value.items()}
        if isinstance(value, list):
            return [self.of(inner, key, free=free) for inner in value]
        return value

    def _text(self, text: str, *, escaped: bool = False) -> str:
        data = text.encode()
        finds, failed = self._scanner.find(data)
        if failed - self._kept:
            raise NotRedactable
        if read := self._reading.find(text):
            finds = disjoint([*(one for one in finds if one.entity not in self._kept), *read])
        pieces, last = [], 0
        for start, end, entity in finds:
            if entity in self._kept:
                continue
            value = data[start:end].decode()
            pieces += [data[last:start].decode(), self._names.of(entity, _unescaped(value) if escaped else value)]
            last = end
        return "".join((*pieces, data[last:].decode())) if pieces else text

    def _arguments(self, text: str) -> str:
        """A function's arguments: JSON in a string. First its own strings, then what shows only beside its keys."""
        values = parsed(text)
        if isinstance(values, dict | list):
            clean = self.of(values, "", free=True)
            if clean != values:
                text = orjson.dumps(clean).decode()
        return self._text(text, escaped=True)


def _unescaped(value: str) -> str:
    """A piece of a JSON string as what it says, where it is a whole piece."""
    try:
        said = orjson.loads(f'"{value}"')
    except ValueError:
        return value
    return str(said)
