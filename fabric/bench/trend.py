"""Runs over time: the figures of each, and how they changed from one to the next. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

FIGURES = (
    "first_token_p50_s",
    "first_token_p95_s",
    "between_tokens_p50_s",
    "output_tokens_per_s",
    "usd_per_million_output_tokens",
    "error_rate",
)
#: Compared in parts of all requests: a share of 0 has no relative change.
SHARES = frozenset(("error_rate",))


class Load(NamedTuple):
    """What is compared with itself: one deployment under one load."""

    workload: str
    deployment: str
    concurrency: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A run's figures of one load; ``None`` where they couldn't be told. ``name``: what it was saved as, or empty.
    ``change``: of each figure since the run before, relative (0.1: a tenth more), of shares the difference; only of
    those that both have."""

    date: str
    name: str
    figures: Mapping[str, float | None]
    change: Mapping[str, float]


def trend(
    runs: Iterable[Mapping[str, Any]], names: Mapping[str, str], *, last: int | None = None
) -> dict[Load, list[Entry]]:
    """``runs``: summaries as ``fabric bench run`` keeps them, in any order; ``names``: date of a run -> its name;
    ``last``: of each load no more than so many, the latest. Oldest first.

    Raises:
        KeyError, TypeError: a summary isn't one.
    """
    found: dict[Load, list[Entry]] = {}
    for run in sorted(runs, key=lambda run: str(run["about"]["date"])):
        date = str(run["about"]["date"])
        for point in run["points"]:
            entries = found.setdefault(Load(run["workload"], point["deployment"], point["concurrency"]), [])
            figures = {name: point.get(name) for name in FIGURES}
            change = changes(entries[-1].figures, figures) if entries else {}
            entries.append(Entry(date, names.get(date, ""), figures, change))
    return {load: entries[-last:] if last else entries for load, entries in found.items()}


def changes(before: Mapping[str, float | None], after: Mapping[str, float | None]) -> dict[str, float]:
    found = {}
    for name, now in after.items():
        was = before.get(name)
        if was is None or now is None:
            continue
        if name in SHARES:
            found[name] = now - was
        elif was:
            found[name] = now / was - 1
    return found
