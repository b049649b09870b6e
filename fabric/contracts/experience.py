"""What finished jobs have taught about the next ones: how quick each deployment is, how long answers get.

Learned in ``fabric/store/scripts`` at each commit: means over the first jobs, after which the newest count
most. Times are seconds, ``updated_ms`` is milliseconds since the epoch on the store's clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


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


@dataclass(frozen=True, slots=True)
class AnswerLength:
    """Tokens that one endpoint of one model answers with."""

    samples: int
    updated_ms: int
    mean_tokens: float


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
