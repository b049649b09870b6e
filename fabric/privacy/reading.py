"""What a reader of whole texts found in a request: names stand for people in one text, and are words in another.

What was found once is found wherever it stands: readers go by what is around a name, and miss it elsewhere.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

import re2

from fabric.privacy.presidio import Part, Presidio, Unread
from fabric.privacy.scanner import Find
from fabric.privacy.texts import plain, prose

#: Bytes of the shortest find that is looked for elsewhere. Shorter ones are too often something else.
_SHORTEST = 3
_EXPRESSION_BYTES = 16 << 20


class Reading:
    """Of one request. ``parts``: of every text that was read; ``entities``: what the operator calls each kind."""

    def __init__(
        self,
        parts: Mapping[str, Sequence[Part]] | None = None,
        entities: Mapping[str, Sequence[str]] | None = None,
        failed: frozenset[str] = frozenset(),
    ) -> None:
        #: Entities of which nothing is known.
        self.failed = failed
        self._parts = parts or {}
        self._entities = entities or {}
        self._spans: dict[str, list[tuple[int, int, str]]] = {}
        self._values: dict[bytes, str] = {}
        for text, found in self._parts.items():
            spans = self._spans[text] = []
            for part in found:
                value = text[part.start : part.end]
                start = part.start + len(value) - len(value.lstrip())
                end = start + len(value.strip())
                for entity in self._entities.get(part.kind, ()):
                    if start < end:
                        spans.append((start, end, entity))
                        self._values.setdefault(text[start:end].encode(), entity)

    def without(self, kept: Collection[str]) -> Reading:
        """As if nobody had looked for ``kept``."""
        if not kept:
            return self
        entities = {kind: [one for one in named if one not in kept] for kind, named in self._entities.items()}
        return Reading(self._parts, entities, self.failed.difference(kept))

    @property
    def names(self) -> frozenset[str]:
        """The entities that are there."""
        return frozenset(entity for spans in self._spans.values() for _, _, entity in spans)

    def find(self, text: str) -> list[Find]:
        """Bytes of ``text`` that are one of the finds."""
        data = text.encode()
        finds: list[Find] = []
        seen = start = 0
        for first, last, entity in sorted(self._spans.get(text, ())):
            start += len(text[seen:first].encode())
            seen = first
            finds.append(Find(start, start + len(text[first:last].encode()), entity))
        for match in self._anywhere.finditer(data) if self._anywhere is not None else ():
            start, end = match.span()
            before = data[max(0, start - 4) : start].decode(errors="ignore")[-1:]
            after = data[end : end + 4].decode(errors="ignore")[:1]
            if not (_joins(before) or _joins(after)):
                finds.append(Find(start, end, self._values[data[start:end]]))
        return finds

    def hidden(self, text: str) -> bool:
        """Whether readers of ``text`` see a find that isn't one in what is written."""
        seen = plain(text)
        if seen is None or not (spans := self._spans.get(seen)):
            return False
        written = {text[start:end] for start, end, _ in self._spans.get(text, ())}
        return not {seen[start:end] for start, end, _ in spans} <= {plain(one) or one for one in written}

    @cached_property
    def _anywhere(self) -> Any:
        values = sorted((value for value in self._values if len(value) >= _SHORTEST), key=len, reverse=True)
        if not values:
            return None
        options = re2.Options()
        options.max_mem = _EXPRESSION_BYTES
        options.log_errors = False
        options.longest_match = True
        return re2.compile(b"|".join(map(re2.escape, values)), options)


def _joins(character: str) -> bool:
    """Whether it makes one word with what it stands beside; from CJK on words stand beside each other unparted."""
    return character == "_" or (character.isalnum() and character < "\u2e80")


NOTHING = Reading()


def read(presidio: Presidio | None, entities: Mapping[str, Sequence[str]], body: Any) -> Reading:
    """Never raises: texts that weren't read count as if all were in them."""
    if presidio is None:
        return NOTHING
    try:
        texts = list(prose(body))
        texts += [seen for text in texts if (seen := plain(text)) is not None]
        return Reading(presidio.read(texts), entities) if texts else NOTHING
    except (Unread, ValueError):
        return Reading(failed=frozenset(name for names in entities.values() for name in names))
