"""Rules that can never count: false whatever comes, or behind others that match all that they could. Pure.

Conditions are tried with every value of what has few (models, labels, the clock, …; of lists with what the rules ask
for) while the rest is left open: an expression that is false even so is false for good.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import combinations, product
from math import prod
from typing import Any, get_args

from fabric.contracts.catalog import Capability, Catalog
from fabric.contracts.detector import BUILT_IN_ENTITIES
from fabric.contracts.terms import ENDPOINTS, PRIORITIES, PRIVACY_LABELS
from fabric.routing.rules import WEEKDAYS, Compiled, Rulebook

#: Combinations that are tried at most: a fraction of a second.
_MOST = 50_000
#: Names that are asked of one list, of which all combinations are tried.
_MOST_NAMES = 8
#: ``"card" in entities``
_MEMBER = re.compile(r"""(?:'([^'\\]*)'|"([^"\\]*)")\s+in\s+(tags|entities|needs)\b""")


def unreachable(catalog: Catalog) -> list[tuple[int, str]]:
    """Number of the rule (from 0) and why, in order. Nothing that is listed could ever count as it is written."""
    book = Rulebook(catalog)
    found: dict[int, str] = {}
    for rules in (book.door, book.placing):
        for at, rule in enumerate(rules):
            why = _unknown(rule, catalog) or _why_not(rule, rules[:at], catalog)
            if why:
                found.setdefault(rule.number, why)
    return sorted(found.items())


def _unknown(rule: Compiled, catalog: Catalog) -> str | None:
    """The complaint about a name that no list of a request can ever hold."""
    for listed, known in _known(catalog).items():
        for name in sorted(_asked([rule], listed) - set(known)):
            return f"nothing is ever called {name!r} in `{listed}`; there are {', '.join(sorted(known))}"
    return None


def _known(catalog: Catalog) -> dict[str, Collection[str]]:
    return {
        "entities": {*BUILT_IN_ENTITIES, *(one.entity for one in catalog.privacy.detectors)},
        "needs": get_args(Capability),
    }


def _asked(rules: Iterable[Compiled], listed: str) -> set[str]:
    texts = [rule.condition.text for rule in rules if rule.condition]
    return {one or other for text in texts for one, other, name in _MEMBER.findall(text) if name == listed}


def _why_not(rule: Compiled, before: Sequence[Compiled], catalog: Catalog) -> str | None:
    together = _worlds([rule, *before], catalog)
    worlds = list(_worlds([rule], catalog) or [{}]) if together is None else list(together)
    possible = [values for values in worlds if _verdict(rule, values) is not False]
    if not possible:
        return "it can never match: no request of this catalogue makes it true"
    blamed: dict[str, None] = {}
    for values in possible:
        first = next((other for other in before if _verdict(other, values) is True), None)
        if first is None:
            return None
        blamed[first.name] = None
    return f"it is never reached: {', '.join(map(repr, blamed))} before it matches all that it could"


def _verdict(rule: Compiled, values: Mapping[str, Any]) -> bool | None:
    return True if rule.condition is None else rule.condition.verdict(values)


def _worlds(rules: Iterable[Compiled], catalog: Catalog) -> Iterator[dict[str, Any]] | None:
    """Every combination of what the rules read and has few values; ``None`` if those are too many."""
    rules = list(rules)
    reads = {name for rule in rules if rule.condition for name in rule.condition.reads}
    axes = [axis for names, axis in _axes(catalog, reads) if reads.intersection(names)]
    axes += _lists(rules, reads)
    if prod(map(len, axes)) > _MOST:
        return None
    return ({name: value for part in parts for name, value in part.items()} for parts in product(*axes))


def _axes(catalog: Catalog, reads: set[str]) -> Iterator[tuple[tuple[str, ...], list[dict[str, Any]]]]:
    few: dict[str, Sequence[Any]] = {
        "model": list(catalog.by_model),
        "endpoint": ENDPOINTS,
        "privacy": PRIVACY_LABELS,
        "priority": PRIORITIES,
        "policy": ["", *catalog.by_policy],
        "weekday": WEEKDAYS,
        "stream": (False, True),
        "batch": (False, True),
    }
    for name, values in few.items():
        yield (name,), [{name: value} for value in values]
    minutes = range(60) if "time" in reads else (0,)
    yield ("hour", "time"), [{"hour": h, "time": f"{h:02}:{m:02}"} for h in range(24) for m in minutes]


def _lists(rules: Sequence[Compiled], reads: set[str]) -> Iterator[list[dict[str, Any]]]:
    """Of lists that rules ask for nothing but whether names are in them: with each combination of these."""
    for listed in sorted(reads.intersection(("tags", "entities", "needs"))):
        others = [_MEMBER.sub("", rule.condition.text) for rule in rules if rule.condition]
        names = sorted(_asked(rules, listed))
        if len(names) <= _MOST_NAMES and not any(re.search(rf"\b{listed}\b", text) for text in others):
            sizes = range(len(names) + 1)
            yield [{listed: list(some)} for size in sizes for some in combinations(names, size)]
