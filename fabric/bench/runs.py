"""A run's figures, and the comparison of two runs. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fabric.bench.statistics import Change, change, mean, median, quantile, share_change


@dataclass(frozen=True, slots=True)
class Sample:
    """One request. Seconds on the client's clock. ``error``: its code; then the other figures say nothing."""

    seconds: float
    first_token_s: float | None = None
    between_tokens_s: float | None = None  #: mean over the answer
    output_tokens: int = 0
    cost_usd: float = 0.0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """One deployment under one load."""

    deployment: str
    model: str
    concurrency: int
    wall_s: float
    samples: tuple[Sample, ...]

    @property
    def key(self) -> tuple[str, int]:
        return self.deployment, self.concurrency

    @property
    def good(self) -> list[Sample]:
        return [sample for sample in self.samples if sample.error is None]

    def values(self, figure: str) -> list[float]:
        return [value for sample in self.good if (value := getattr(sample, figure)) is not None]

    def figures(self) -> dict[str, float | None]:
        """``None``: it can't be told from these requests. ``error_rate``: of all requests."""
        good = self.good
        tokens, cost = sum(s.output_tokens for s in good), sum(s.cost_usd for s in good)
        first, between = self.values("first_token_s"), self.values("between_tokens_s")
        return {
            "first_token_p50_s": median(first) if first else None,
            "first_token_p95_s": quantile(first, 0.95) if first else None,
            "between_tokens_p50_s": median(between) if between else None,
            "output_tokens_per_s": tokens / self.wall_s if self.wall_s > 0 else None,
            "requests_per_s": len(good) / self.wall_s if self.wall_s > 0 else None,
            "usd_per_million_output_tokens": cost / tokens * 1e6 if tokens else None,
            "error_rate": 1 - len(good) / len(self.samples) if self.samples else None,
        }


@dataclass(frozen=True, slots=True)
class Run:
    """``about``: machine, versions, date."""

    workload: str
    about: dict[str, Any]
    points: tuple[Point, ...]

    def dump(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def load(cls, values: dict[str, Any]) -> Run:
        """
        Raises:
            KeyError, TypeError: it isn't one.
        """
        points = tuple(
            Point(**{**point, "samples": tuple(Sample(**sample) for sample in point["samples"])})
            for point in values["points"]
        )
        return cls(values["workload"], values["about"], points)


Verdict = Literal["worse", "better", "same", "unknown"]


@dataclass(frozen=True, slots=True)
class Finding:
    """``verdict``: whether the change is beyond the threshold with confidence; ``unknown``: too few answers."""

    deployment: str
    concurrency: int
    figure: str
    change: Change | None
    verdict: Verdict


def compare(before: Run, after: Run, threshold: float) -> list[Finding]:
    """Of what both have. ``threshold``: 0.1 is a tenth. The rate of errors may grow by the threshold in
    parts of all requests."""
    known = {point.key: point for point in before.points}
    return [
        one for point in after.points if point.key in known for one in _findings(known[point.key], point, threshold)
    ]


def _findings(before: Point, after: Point, threshold: float) -> Iterator[Finding]:
    for figure in ("first_token_s", "between_tokens_s", "seconds"):
        found = change(before.values(figure), after.values(figure))
        yield Finding(*after.key, figure, found, _verdict(found, threshold))
    costs = [[s.cost_usd for s in point.good] for point in (before, after)]
    if any(costs[0]):
        found = change(costs[0], costs[1], mean)
        yield Finding(*after.key, "cost_usd", found, _verdict(found, threshold))
    more = share_change(_errors(before.samples), _errors(after.samples))
    yield Finding(*after.key, "error_rate", more, _verdict(more, threshold))


def _verdict(found: Change | None, threshold: float) -> Verdict:
    if found is None:
        return "unknown"
    if found.low > 0 and found.change > threshold:
        return "worse"
    return "better" if found.high < 0 and found.change < -threshold else "same"


def _errors(samples: Sequence[Sample]) -> tuple[int, int]:
    return sum(s.error is not None for s in samples), len(samples)


def sparkline(values: Sequence[float]) -> str:
    """One character for each value, higher for more."""
    bars = "▁▂▃▄▅▆▇█"
    low, high = min(values), max(values)
    step = (high - low) / (len(bars) - 1)
    return "".join(bars[round((value - low) / step)] if step else bars[0] for value in values)
