"""What finished jobs have taught about the next ones: how quick each deployment is, how long answers get.

Learned in ``fabric/store/scripts`` at each commit: means over the first jobs, after which the newest count
most. Times are seconds, ``updated_ms`` is milliseconds since the epoch on the store's clock.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

#: Tokens of answers that are told apart: each length counts with the first bound that it doesn't exceed.
LENGTH_BOUNDS: tuple[float, ...] = (1, *(bound for power in range(1, 17) for bound in (2**power, 3 * 2 ** (power - 1))))
#: Of an answer that goes on where none has been seen to end: how much further it is expected to go.
_UNSEEN_TOKENS = 256.0


@dataclass(frozen=True, slots=True)
class Pace:
    """One endpoint of one deployment. The time to the first token is a line over the prompt's estimated tokens."""

    samples: int
    updated_ms: int
    engine_s: float  #: mean of a whole job in the engine
    base_s: float  #: to the first token of an empty prompt
    per_prompt_token_s: float
    per_output_token_s: float
    #: Jobs of which the time to the first token is known; ``0``: the deployment never says.
    first_tokens: int = 0
    queue_s: float = 0.0  #: from the decision until a worker has it
    end_s: float = 0.0  #: from the engine's last word until the outcome is kept


@dataclass(frozen=True, slots=True)
class Survival:
    """``beyond``: for each of ``LENGTH_BOUNDS`` the share of answers that go beyond it if nothing cuts them; ``area``:
    under the curve of these shares up to there; ``seen``: how many of the bounds anything is known of.
    """

    beyond: tuple[float, ...]
    area: tuple[float, ...]
    seen: int

    def expected(self, most: float) -> float:
        """Mean tokens of an answer that may have ``most``: the area under the curve up to there."""
        at = bisect_left(LENGTH_BOUNDS, most, 0, self.seen)
        before, area, share = (LENGTH_BOUNDS[at - 1], self.area[at - 1], self.beyond[at - 1]) if at else (0, 0.0, 1.0)
        if at == self.seen:
            return area + share * min(_UNSEEN_TOKENS, most - before)
        width = most - before
        # Inside of a bound's step answers end evenly.
        return area + width * (share + (self.beyond[at] - share) * width / (LENGTH_BOUNDS[at] - before) / 2)

    def quantile(self, share: float, most: float) -> float:
        """Tokens that so many of the answers don't exceed, if none may have more than ``most``."""
        for bound, beyond in zip(LENGTH_BOUNDS[: self.seen], self.beyond, strict=False):
            if bound >= most or beyond <= 1 - share:
                return min(bound, most)
        return min(most, (LENGTH_BOUNDS[self.seen - 1] if self.seen else 0.0) + _UNSEEN_TOKENS)


def survival(ended: Sequence[float], cut: Sequence[float]) -> Survival:
    """From how many answers ended by themselves, and how many were cut by their limit, by ``LENGTH_BOUNDS``: the
    product-limit estimate (Kaplan and Meier, 1958), in which an answer that was cut counts as long as it was seen."""
    at_risk = sum(ended) + sum(cut)
    before, share, area, seen = 0.0, 1.0, 0.0, 0
    shares, areas = [], []
    for number, (bound, stopped, lost) in enumerate(zip(LENGTH_BOUNDS, ended, cut, strict=True), 1):
        after = share * max(0.0, 1 - stopped / at_risk) if stopped else share
        area += (bound - before) * (share + after) / 2
        at_risk -= stopped + lost
        before, share = bound, after
        shares.append(share)
        areas.append(area)
        if stopped or lost:
            seen = number
    return Survival(tuple(shares), tuple(areas), seen)


@dataclass(frozen=True, slots=True)
class AnswerLength:
    """Tokens of one answer of one endpoint of one model. ``mean_tokens``: of the answers as they were, cut or not."""

    samples: int
    updated_ms: int
    mean_tokens: float
    survival: Survival | None = None  #: not in what an earlier version learned

    def expected(self, most: float = inf) -> float:
        """Mean tokens of an answer that may have ``most``."""
        return min(self.mean_tokens, most) if self.survival is None else self.survival.expected(most)


@dataclass(frozen=True, slots=True)
class Experience:
    """By endpoint and deployment, and by endpoint and model."""

    paces: Mapping[tuple[str, str], Pace] = field(default_factory=dict)
    lengths: Mapping[tuple[str, str], AnswerLength] = field(default_factory=dict)


def fitted(n: int, x: float, y: float, xx: float, xy: float) -> tuple[float, float]:
    """Intercept and slope of the least-squares line through points of which the means of x, y, x² and xy are
    known; neither is below zero. Points that hardly differ in x say nothing of a slope: then it goes through
    their mean, flat."""
    variance = xx - x * x
    if n < 2 or variance <= 1e-3 * max(1.0, x * x):
        return max(0.0, y), 0.0
    slope = max(0.0, (xy - x * y) / variance)
    if (base := y - slope * x) < 0:
        return 0.0, y / x
    return base, slope
