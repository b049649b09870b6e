"""What ``fabric bench trend`` reads and shows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import orjson

from fabric.bench.trend import SHARES, Entry, Load, trend
from fabric.contracts.errors import ConfigError

HEADERS = ("Run", "Name", "First token", "Change", "P95", "Tokens/s", "Change", "USD/M output", "Errors")


def read(folder: Path, *, last: int | None = None) -> dict[Load, list[Entry]]:
    """
    Raises:
        ConfigError: the history can't be read.
    """
    path = folder / "history.jsonl"
    try:
        runs = [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []
        return trend(runs, _names(folder), last=last)
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise ConfigError(f"{path} can't be read as a history of runs.") from None


def _names(folder: Path) -> dict[str, str]:
    """Date of a run -> what it was saved as."""
    names: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.json")):
        if path.stem != "latest":
            names.setdefault(str(orjson.loads(path.read_bytes())["about"]["date"]), []).append(path.stem)
    return {date: ", ".join(several) for date, several in names.items()}


def cells(entries: Iterable[Entry]) -> list[list[str | None]]:
    """As ``HEADERS`` says: a change is of the figure before it, since the run before."""
    return [
        [
            _moment(entry.date),
            entry.name or None,
            _figure(entry, "first_token_p50_s"),
            _change(entry, "first_token_p50_s"),
            _figure(entry, "first_token_p95_s"),
            _figure(entry, "output_tokens_per_s"),
            _change(entry, "output_tokens_per_s"),
            _figure(entry, "usd_per_million_output_tokens"),
            _figure(entry, "error_rate"),
        ]
        for entry in entries
    ]


def _moment(date: str) -> str:
    return date[:16].replace("T", " ")


def _figure(entry: Entry, figure: str) -> str | None:
    value = entry.figures[figure]
    if value is None:
        return None
    return f"{value:.1%}" if figure in SHARES else f"{value:.4g}"


def _change(entry: Entry, figure: str) -> str | None:
    return f"{entry.change[figure]:+.1%}" if figure in entry.change else None


def dumped(load: Load, entries: Sequence[Entry]) -> dict[str, Any]:
    runs = [{"date": e.date, "name": e.name or None, **e.figures, "change": dict(e.change)} for e in entries]
    return {**load._asdict(), "runs": runs}
