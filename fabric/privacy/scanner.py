"""One combined pass over a text says which recognizers have candidates; only those are asked.

Every expression runs on RE2, built-in or not: time grows with the text, whatever the text and the expression.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import re2

from fabric.contracts.detector import Detector
from fabric.privacy.recognizers import RECOGNIZERS, Recognizer

#: For the states of the combined expression and of each of them alone. What doesn't fit is worked out again.
_SET_BYTES = 64 << 20
_EXPRESSION_BYTES = 16 << 20


class Find(NamedTuple):
    """Bytes of the text, from ``start`` to ``end``."""

    start: int
    end: int
    entity: str


class Finds(NamedTuple):
    """``failed``: entities whose recognizers broke: whether the text has them isn't known."""

    finds: list[Find]
    failed: frozenset[str]


class Scanner:
    """What ``detectors`` name, and all that is built in."""

    def __init__(self, detectors: Sequence[Detector] = ()) -> None:
        own = tuple(Recognizer(one.entity, one.pattern.encode()) for one in detectors if one.pattern is not None)
        self._recognizers = (*RECOGNIZERS, *own)
        self._expressions = [re2.compile(one.pattern, _options(_EXPRESSION_BYTES)) for one in self._recognizers]
        self._set = re2.Set.SearchSet(_options(_SET_BYTES))
        for recognizer in self._recognizers:
            self._set.Add(recognizer.pattern)
        # Matches any text: its absence from an answer says that the search broke off.
        self._always = self._set.Add(b"")
        self._set.Compile()

    def names(self, text: bytes) -> tuple[frozenset[str], frozenset[str]]:
        """The entities that the text has, and those of which it isn't known. Never raises."""
        found: set[str] = set()
        failed: set[str] = set()
        for number, broken in self._candidates(text):
            entity = self._recognizers[number].entity
            if entity in found:
                continue
            try:
                if broken or next(self._ranges(number, text), None) is not None:
                    (failed if broken else found).add(entity)
            except Exception:  # noqa: BLE001 - a detector that errors counts as one that fired
                failed.add(entity)
        return frozenset(found), frozenset(failed - found)

    def find(self, text: bytes) -> Finds:
        """Where they are: in order, none overlapping another. Never raises."""
        finds: list[Find] = []
        failed: set[str] = set()
        for number, broken in self._candidates(text):
            entity = self._recognizers[number].entity
            if broken:
                failed.add(entity)
                continue
            try:
                finds += [Find(start, end, entity) for start, end in self._ranges(number, text)]
            except Exception:  # noqa: BLE001 - as above
                failed.add(entity)
        return Finds(disjoint(finds), frozenset(failed))

    def _candidates(self, text: bytes) -> Iterator[tuple[int, bool]]:
        """Numbers of recognizers that have something to look at, and whether the search itself broke."""
        try:
            numbers = self._set.Match(text) or ()
        except Exception:  # noqa: BLE001 - as above
            numbers = ()
        if self._always not in numbers:
            yield from ((number, True) for number in range(len(self._recognizers)))
            return
        yield from ((number, False) for number in sorted(numbers) if number != self._always)

    def _ranges(self, number: int, text: bytes) -> Iterator[tuple[int, int]]:
        ranges = self._recognizers[number].ranges
        until = 0
        for match in self._expressions[number].finditer(text):
            if match.start() < until:
                continue  # inside of what the last one took
            if ranges is None:
                yield match.span()
                continue
            for start, end in ranges(text, match):
                until = end
                yield start, end


def _options(max_mem: int) -> re2.Options:
    options = re2.Options()
    options.max_mem = max_mem
    options.log_errors = False
    return options


def disjoint(finds: list[Find]) -> list[Find]:
    """Finds that overlap become one: of the entity of the longest, over all that they cover."""
    whole: list[Find] = []
    longest = 0
    for find in sorted(finds, key=lambda one: (one.start, -one.end)):
        if whole and find.start < whole[-1].end:
            last = whole[-1]
            length = find.end - find.start
            entity = find.entity if length > longest else last.entity
            longest = max(longest, length)
            whole[-1] = Find(last.start, max(last.end, find.end), entity)
        else:
            whole.append(find)
            longest = find.end - find.start
    return whole
