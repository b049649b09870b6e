"""Budgets: how much the jobs of a tenant, a key or a tag, or all of them, may cost in a window of time, in money or in
tokens. Values only.

Money is counted in whole billionths of a US dollar, so that what is taken out of a reservation is exactly what was
put in.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from fabric.contracts.job import JobSpec

Period = Literal["hour", "day", "month", "total"]
BudgetName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]

Unit = Literal["usd", "tokens"]
#: Billionths of a US dollar, or tokens of a budget that is in tokens.
Nano = int
NANO = 1_000_000_000
_FORMATS: dict[Period, str] = {"hour": "%Y-%m-%dT%H", "day": "%Y-%m-%d", "month": "%Y-%m", "total": "total"}


class Budget(BaseModel):
    """``usd``: US dollars for one window (UTC), or ``tokens``: of prompts and answers, wherever they run. Without a
    tenant, key or tag it is for all jobs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: BudgetName
    usd: float | None = Field(None, ge=0, le=1_000_000, allow_inf_nan=False)
    tokens: int | None = Field(None, ge=0, le=1_000_000_000_000)
    window: Period = "month"
    tenant: str | None = Field(None, min_length=1, max_length=128)
    key: str | None = Field(None, min_length=1, max_length=64)
    tag: str | None = Field(None, min_length=1, max_length=64)
    #: Whether jobs are refused that could go beyond it. Without: it is only counted and told of.
    hard: bool = True

    @model_validator(mode="after")
    def _one_kind_of_owner(self) -> Budget:
        if sum(owner is not None for owner in (self.tenant, self.key, self.tag)) > 1:
            raise ValueError("give one of `tenant`, `key` and `tag`, or none for all jobs")
        return self

    @model_validator(mode="after")
    def _one_unit(self) -> Budget:
        if (self.usd is None) == (self.tokens is None):
            raise ValueError("give one of `usd` and `tokens`")
        return self

    @property
    def unit(self) -> Unit:
        return "tokens" if self.usd is None else "usd"

    @property
    def limit(self) -> Nano:
        return round(self.usd * NANO) if self.usd is not None else self.tokens or 0

    @property
    def scope(self) -> str:
        """Whose it is: one of a few words, for metrics."""
        return next((name for name in ("tenant", "key", "tag") if getattr(self, name) is not None), "all")

    def covers(self, spec: JobSpec) -> bool:
        if self.tenant is not None:
            return spec.tenant == self.tenant
        if self.key is not None:
            return spec.key_id == self.key
        return self.tag is None or self.tag in spec.tags


@dataclass(frozen=True, slots=True)
class Charge:
    """What one budget reserves for a job: a line of the job's charges, as the store's scripts read it.

    ``limit`` is ``None`` for a budget that only counts, ``end_ms`` 0 for a window without an end.
    ``of``: ``UNIT/SCOPE``; charges of before have none.
    """

    name: str
    window: str
    limit: Nano | None
    amount: Nano
    end_ms: int
    of: str = ""

    @classmethod
    def parse(cls, line: str) -> Charge:
        name, window, limit, amount, end_ms, *of = line.split(" ")
        return cls(name, window, None if limit == "-" else int(limit), int(amount), int(end_ms), *of)

    def __str__(self) -> str:
        limit = "-" if self.limit is None else self.limit
        return f"{self.name} {self.window} {limit} {self.amount} {self.end_ms} {self.of}".rstrip()

    @property
    def unit(self) -> str:
        return self.of.partition("/")[0]

    @property
    def scope(self) -> str:
        return self.of.partition("/")[2]


@dataclass(frozen=True, slots=True)
class Window:
    """``name`` sorts by time. Milliseconds since the epoch; ``end_ms`` is excluded, ``None``: never ends."""

    name: str
    start_ms: int
    end_ms: int | None


def window_at(period: Period, now_ms: int) -> Window:
    """The window of UTC time that ``now_ms`` is in."""
    if period == "total":
        return Window("total", 0, None)
    now = datetime.fromtimestamp(now_ms / 1000, UTC)
    start = now.replace(minute=0, second=0, microsecond=0)
    if period == "hour":
        end = start + timedelta(hours=1)
    elif period == "day":
        start = start.replace(hour=0)
        end = start + timedelta(days=1)
    else:
        start = start.replace(hour=0, day=1)
        end = (start + timedelta(days=32)).replace(day=1)
    return Window(start.strftime(_FORMATS[period]), _ms(start), _ms(end))


def period_of(window: str) -> Period:
    """Of which a window's name is."""
    if window == "total":
        return "total"
    parts: dict[int, Period] = {1: "month", 2: "hour" if "T" in window else "day"}
    return parts[window.count("-")]


def _ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
