"""What a run prints."""

from __future__ import annotations

import math
from collections.abc import Sequence


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that ``share`` percent of them don't exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share / 100 * len(ordered)) - 1)]


def spread(values: Sequence[float], unit: str = "ms") -> str:
    if not values:
        return "none"
    return f"p50 {percentile(values, 50):.0f} {unit}, p99 {percentile(values, 99):.0f} {unit} of {len(values)}"
