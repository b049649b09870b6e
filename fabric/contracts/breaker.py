"""Circuit breakers and retry budgets: one per deployment, shared by all workers. Pure.

    closed ──too many errors, too many slow answers──▶ open ──open_s──▶ half open ──the probe fails──▶ open, for longer
       ▲                                                                    │
       └──────────────────────────the probe succeeds────────────────────────┘

The rules run inside the calls that end attempts (``fabric/store/scripts/parts/health.lua``); this is the same in
Python, and the store's tests hold the two against each other. A deployment that is well has no record:
counting begins with the first bad end.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field

#: How an attempt ended, for its deployment. ``neutral``: it says nothing of it (the caller's fault, a cancellation).
End = Literal["good", "slow", "bad", "neutral"]
#: Seconds per token that no answer is too slow for: beside ``slow_s``, for what long answers take.
SLOW_TOKEN_S = 1.0
#: Part of a retry that each good end gives back.
GOOD_END = 0.2
#: How far a retry may be put off by the budget, in seconds.
PUT_OFF_S = 30.0
#: Less than this much of a bad end is none.
_NOTHING = 0.01


class Breaker(BaseModel):
    """When a deployment counts as sick, how long it is left alone, and how many retries it gets."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: In a row. Fewer spare a dead place's jobs more tries, and open on bad luck.
    failures: int = Field(5, ge=1)
    #: Part of the ends in the window, of which there must be ``minimum``.
    error_rate: float = Field(0.5, gt=0, le=1)
    minimum: int = Field(10, ge=1)
    #: After so many seconds an end counts for half.
    window_s: float = Field(30.0, gt=0, le=3600, allow_inf_nan=False)
    #: An answer is slow that takes longer than this and a second per token.
    slow_s: float = Field(120.0, gt=0, allow_inf_nan=False)
    slow_rate: float = Field(0.8, gt=0, le=1)
    #: Until the first probe; twice as long after each one that fails, up to ``open_max_s``.
    open_s: float = Field(10.0, gt=0, allow_inf_nan=False)
    open_max_s: float = Field(300.0, gt=0, allow_inf_nan=False)
    #: Retries beyond ``retry_burst`` are put off so that there are no more per second than this.
    retries_per_s: float = Field(10.0, gt=0, allow_inf_nan=False)
    retry_burst: int = Field(64, ge=0)

    def over(self, other: Breaker) -> Breaker:
        """What is set here, and the rest as in ``other``."""
        return other.model_copy(update={name: getattr(self, name) for name in self.model_fields_set})


def end_of(engine_s: float, output_tokens: int, rules: Breaker) -> End:
    """Of an attempt that succeeded."""
    return "slow" if engine_s > rules.slow_s + SLOW_TOKEN_S * output_tokens else "good"


def dump(rules: Iterable[tuple[str, Breaker]]) -> bytes:
    """By deployment, for the store's scripts; ``*`` for all others."""
    return orjson.dumps({"*": Breaker().model_dump(), **{name: one.model_dump() for name, one in rules}})


@dataclass(frozen=True, slots=True)
class Health:
    """How a deployment has fared. Times: milliseconds since the epoch on the store's clock.

    ``n``, ``bad``, ``slow``: ends, the newest counting most. ``open_until``: 0 while it is closed. ``trips``: how
    often in a row it has opened. ``debt``: retries of the budget that are used, at ``debt_at``.
    """

    n: float = 0.0
    bad: float = 0.0
    slow: float = 0.0
    row: int = 0
    at: int = 0
    open_until: int = 0
    trips: int = 0
    why: str = ""
    debt: float = 0.0
    debt_at: int = 0

    @property
    def well(self) -> bool:
        """Nothing that is worth a record."""
        return not (self.open_until or self.row or self.n or self.debt > 0)

    @classmethod
    def load(cls, values: dict[str, Any]) -> Health:
        return cls(**{name: values[name] for name in cls.__slots__ if name in values})


def after(health: Health, rules: Breaker, end: End, now_ms: int, *, probe: bool) -> Health:
    """``probe``: whether it is the end of the one job that a half-open breaker let through."""
    if health.open_until:
        if not probe or end == "neutral":
            return health  # it was under way before, or says nothing
        return _settled(health) if end == "good" else _trip(health, rules, "probe", now_ms)
    if end == "neutral" or (end == "good" and health.well):
        return health
    if end == "good":
        health = replace(health, debt=max(0.0, _debt(health, rules, now_ms) - GOOD_END), debt_at=now_ms)
        if not (health.row or health.n):
            return health
    left = 0.5 ** (max(0, now_ms - health.at) / (1000 * rules.window_s))
    health = replace(
        health,
        n=health.n * left + 1,
        bad=health.bad * left + (end == "bad"),
        slow=health.slow * left + (end == "slow"),
        row=health.row + 1 if end == "bad" else 0,
        at=now_ms,
    )
    if end == "good":  # which never opens it
        return health if health.bad >= _NOTHING or health.slow >= _NOTHING else _settled(health)
    if health.row >= rules.failures:
        return _trip(health, rules, "failures", now_ms)
    if health.n >= rules.minimum and health.bad >= rules.error_rate * health.n:
        return _trip(health, rules, "error_rate", now_ms)
    if health.n >= rules.minimum and health.slow >= rules.slow_rate * health.n:
        return _trip(health, rules, "slow", now_ms)
    return health


def _settled(health: Health) -> Health:
    """Only the budget's debt may be left."""
    return Health(debt=health.debt, debt_at=health.debt_at)


def put_off(health: Health, rules: Breaker, now_ms: int) -> tuple[Health, int]:
    """Takes one retry out of the budget; milliseconds that it has to wait at least."""
    debt = min(_debt(health, rules, now_ms) + 1, rules.retry_burst + PUT_OFF_S * rules.retries_per_s)
    wait_ms = int(max(0.0, debt - rules.retry_burst) / rules.retries_per_s * 1000)
    return replace(health, debt=debt, debt_at=now_ms), wait_ms


def _trip(health: Health, rules: Breaker, why: str, now_ms: int) -> Health:
    open_s = min(rules.open_max_s, rules.open_s * 2.0 ** min(health.trips, 30))
    return Health(
        open_until=now_ms + int(open_s * 1000),
        trips=health.trips + 1,
        why=why,
        debt=health.debt,
        debt_at=health.debt_at,
    )


def _debt(health: Health, rules: Breaker, now_ms: int) -> float:
    return max(0.0, health.debt - rules.retries_per_s * max(0, now_ms - health.debt_at) / 1000)


@dataclass(frozen=True, slots=True)
class OpenBreaker:
    """A breaker that isn't closed, as it is now. ``half_open``: one job may try. ``probing``: one does."""

    half_open: bool
    probing: bool
    until_ms: int
    why: str

    @property
    def state(self) -> str:
        return "half_open" if self.half_open else "open"

    @property
    def shut(self) -> bool:
        """Whether nobody may go there."""
        return not self.half_open or self.probing


#: Why it opened, in words.
WHY = {
    "failures": "failures in a row",
    "error_rate": "too many failures",
    "slow": "too many slow answers",
    "probe": "its probe failed",
}
