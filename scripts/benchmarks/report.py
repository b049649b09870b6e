"""What a benchmark says: tables for people, and one line of JSON for machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson


@dataclass(frozen=True, slots=True)
class Budget:
    """A goal of the design. ``limit`` is the most that is allowed, or with ``at_least`` the least."""

    what: str
    limit: float
    reached: float
    unit: str
    at_least: bool = False

    @property
    def met(self) -> bool:
        return self.reached >= self.limit if self.at_least else self.reached <= self.limit

    def asdict(self) -> dict[str, Any]:
        bound = "at_least" if self.at_least else "at_most"
        return {
            "what": self.what,
            bound: self.limit,
            "reached": _rounded(self.reached),
            "unit": self.unit,
            "met": self.met,
        }

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        verdict = "met" if self.met else "MISSED"
        return f"{self.what}: {_shown(self.reached)} {self.unit}, budget {sign} {_shown(self.limit)}: {verdict}"


@dataclass(frozen=True, slots=True)
class Table:
    """``rows``: the first cell names the row."""

    head: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def __str__(self) -> str:
        cells = [[str(cell) for cell in self.head], *([_shown(cell) for cell in row] for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if n == 0 else cell.rjust(width)
                for n, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in cells
        )


@dataclass(frozen=True, slots=True)
class Report:
    """``value`` is the fabric's figure, ``direct`` the one without it; ``None`` where there is no such thing."""

    name: str
    value: float
    unit: str
    direct: float | None
    budgets: Sequence[Budget] = ()
    tables: Sequence[Table] = ()
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        return self.value / self.direct if self.direct else None

    def json(self) -> str:
        fields = {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "direct": self.direct,
            "ratio": self.ratio,
            "met": all(budget.met for budget in self.budgets) if self.budgets else None,
            "budgets": [budget.asdict() for budget in self.budgets],
            **self.more,
        }
        return orjson.dumps(_rounded(fields)).decode()

    def __str__(self) -> str:
        parts = [f"{self.name}: {_shown(self.value)} {self.unit}"]
        if self.direct is not None:
            parts[0] += f", direct {_shown(self.direct)} (ratio {_shown(self.ratio)})"
        parts += map(str, self.tables)
        if self.budgets:
            parts.append("\n".join(map(str, self.budgets)))
        return "\n\n".join(parts)


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which ``share`` of the ordered values lie (nearest rank)."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _rounded(value: Any) -> Any:
    """Five significant digits: more would pretend to a precision that a run doesn't have."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
