"""Balances of budgets. What takes part in them is in the scripts that take jobs in and end them.

One hash a budget and window: ``reserved`` for jobs that haven't ended, ``spent`` by those that have; both in
billionths of a US dollar. There is none until it is opened: the store may have lost what was spent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fabric.contracts.budget import Budget, Nano, Window
from fabric.contracts.job import JobSpec
from fabric.store.command import Argument, Command, call

#: A stream of what operators want to be told of, one entry each: ``event`` names what has happened, the other fields
#: describe it. No prompts, no keys.
NOTICES = "fabric:notices"
_NOTICES_KEPT = 1_000
#: How long the balance of a window stays after its end, in seconds: for jobs that end late.
_KEPT_S = 45 * 86_400


@dataclass(frozen=True, slots=True)
class Balance:
    reserved: Nano = 0
    spent: Nano = 0

    @property
    def taken(self) -> Nano:
        return self.spent + self.reserved


@dataclass(frozen=True, slots=True)
class Opening:
    """``spent``: what the ledger knows of that window. ``end_ms``: since the epoch; ``None``: never."""

    name: str
    window: str
    end_ms: int | None
    spent: Nano = 0


def open_(openings: Iterable[Opening]) -> Command[int]:
    """Answers how many were new; the others stay as they are."""
    arguments: list[Argument] = []
    for opening in openings:
        until = 0 if opening.end_ms is None else opening.end_ms // 1000 + _KEPT_S
        arguments += (opening.name, opening.window, opening.spent, until)
    return call("open_budgets", arguments, int)


def raise_spent(known: Iterable[tuple[str, str, Nano]]) -> Command[int]:
    """Triples of a budget's name, a window, and what was spent at least. Answers how many went up."""
    arguments: list[Argument] = [part for triple in known for part in triple]
    return call("raise_spent", arguments, int)


def live(cursor: int, count: int = 1_000) -> Command[tuple[int, list[tuple[str, int]]]]:
    """Some of the live jobs and when they came in, in milliseconds since the epoch; and where to go on (0: done).
    Those that live all the while are seen."""

    def parse(answer: Any) -> tuple[int, list[tuple[str, int]]]:
        after, found = answer
        flat = [part for pair in found for part in pair] if found and isinstance(found[0], (list, tuple)) else found
        return int(after), [(job.decode(), int(float(at))) for job, at in zip(flat[::2], flat[1::2], strict=True)]

    return Command(("ZSCAN", "fabric:live", cursor, "COUNT", count), parse)


def unlisted(budget: str, job_ids: Sequence[str]) -> Command[list[JobSpec]]:
    """Of these jobs those that live and that the budget doesn't count."""
    return call("unlisted", [budget, *job_ids], lambda answer: [JobSpec.load(spec) for spec in answer])


def enlist(budget: str, lines: Iterable[tuple[str, str]]) -> Command[int]:
    """Pairs of a job's id and the line that its charges get. Answers how many count from now on."""
    return call("enlist", [budget, *(part for pair in lines for part in pair)], int)


def server() -> Command[str]:
    """Another one after each start of the server."""
    return Command(("INFO", "server"), lambda answer: str(answer["run_id"]))


def warn_once(budget: Budget, window: Window, balance: Balance) -> Command[int]:
    """1 the first time for a window, else 0. It is counted, and an entry ``budget.soft_exceeded`` of ``NOTICES``."""
    used = balance.taken
    told: list[Argument] = [budget.name, window.name, budget.unit, budget.scope, budget.limit, used, _NOTICES_KEPT]
    return call("warn_once", told, int)


def warnings() -> Command[dict[tuple[str, str], int]]:
    """(scope, unit) -> windows of soft budgets that were used up."""

    def parse(answer: Any) -> dict[tuple[str, str], int]:
        pairs = answer.items() if isinstance(answer, dict) else zip(answer[::2], answer[1::2], strict=True)
        return {tuple(name.decode().split(" ")): int(count) for name, count in pairs}

    return Command(("HGETALL", "fabric:budget_warnings"), parse)


def balances(which: Sequence[tuple[str, str]]) -> Command[list[Balance | None]]:
    """Of pairs of a budget's name and a window; ``None`` for one that isn't open."""
    arguments: list[Argument] = [part for pair in which for part in pair]

    def parse(answer: list[list[bytes]]) -> list[Balance | None]:
        return [Balance(int(pair[0]), int(pair[1])) if pair else None for pair in answer]

    return call("balances", arguments, parse)
