"""Percentiles, and how sure a difference is. Pure."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

#: Redrawn samples for one interval. More give steadier bounds and take longer.
_DRAWS = 1_000
_SURE = 0.95
#: Standard deviations that hold so much of a normal distribution.
_Z = NormalDist().inv_cdf(1 - (1 - _SURE) / 2)


@dataclass(frozen=True, slots=True)
class Change:
    """Relative: 0.1 is a tenth more than before. With 95 % confidence it is from ``low`` to ``high``."""

    change: float
    low: float
    high: float


def share_interval(count: int, of: int) -> tuple[float, float]:
    """Wilson's score interval (1927) of a share: right for few, none and all, too."""
    share, z2 = count / of, _Z * _Z
    middle = (share + z2 / (2 * of)) / (1 + z2 / of)
    half = _Z * math.sqrt(share * (1 - share) / of + z2 / (4 * of * of)) / (1 + z2 / of)
    return max(0.0, middle - half), min(1.0, middle + half)


def share_change(before: tuple[int, int], after: tuple[int, int]) -> Change | None:
    """Of shares, each (count, of how many): the difference in parts of all, with Newcombe's hybrid score interval
    (1998, method 10). ``None`` where there is nothing to share."""
    if not before[1] or not after[1]:
        return None
    was, now = before[0] / before[1], after[0] / after[1]
    (was_low, was_high), (now_low, now_high) = share_interval(*before), share_interval(*after)
    low = now - was - math.hypot(now - now_low, was_high - was)
    high = now - was + math.hypot(now_high - now, was - was_low)
    return Change(now - was, low, high)


def quantile(values: Sequence[float], q: float) -> float:
    """Linear between neighbours. ``values`` needn't be sorted and mustn't be empty."""
    ordered = sorted(values)
    at = q * (len(ordered) - 1)
    below = int(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (at - below) * (ordered[above] - ordered[below])


def median(values: Sequence[float]) -> float:
    return quantile(values, 0.5)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def change(
    before: Sequence[float], after: Sequence[float], of: Callable[[Sequence[float]], float] = median, *, seed: int = 0
) -> Change | None:
    """Percentile bootstrap (Efron 1979) of the relative change of ``of``. ``None`` where there is nothing to divide
    by: too few values (two at least), or a figure of 0 before. The same values give the same interval."""
    if len(before) < 2 or len(after) < 2 or of(before) <= 0:
        return None
    draw = random.Random(seed)  # noqa: S311 - statistics
    changes = []
    for _ in range(_DRAWS):
        base = of(draw.choices(before, k=len(before)))
        if base > 0:
            changes.append(of(draw.choices(after, k=len(after))) / base - 1)
    if not changes:
        return None
    tail = (1 - _SURE) / 2
    return Change(of(after) / of(before) - 1, quantile(changes, tail), quantile(changes, 1 - tail))
