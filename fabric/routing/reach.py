"""Rules that can never count: false whatever comes, or behind others that match all that they could. Pure.

Conditions are tried with every value of what has few (models, labels, the clock, …) while the rest is left
open: an expression that is false even so is false for good.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from math import prod
from typing import Any

from fabric.contracts.catalog import Catalog
from fabric.contracts.terms import ENDPOINTS, PRIORITIES, PRIVACY_LABELS
from fabric.routing.rules import WEEKDAYS, Compiled, Rulebook

#: Combinations that are tried at most: a fraction of a second.
_MOST = 50_000


def unreachable(catalog: Catalog) -> list[tuple[int, str]]:
    """Number of the rule (from 0) and why, in order. Nothing that is listed could ever count."""
    book = Rulebook(catalog)
    found: dict[int, str] = {}
    for rules in (book.door, book.placing):
        for at, rule in enumerate(rules):
            why = _why_not(rule, rules[:at], catalog)
            if why:
                found.setdefault(rule.number, why)
    return sorted(found.items())


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
    reads = {name for rule in rules if rule.condition for name in rule.condition.reads}
    axes = [axis for names, axis in _axes(catalog, reads) if reads.intersection(names)]
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
