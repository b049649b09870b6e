"""Rate limits: how much may be asked for with a key, or by a tenant, at once and in a minute. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from fabric.contracts.budget import Budget, Period
from fabric.contracts.terms import TenantName

LimitKind = Literal["requests", "tokens", "concurrent", "batch_tokens"]
LimitScope = Literal["key", "tenant"]
#: Stands for every tenant that isn't named, each by itself.
EVERY_TENANT = "*"

Amount = Annotated[int, Field(ge=1, le=1_000_000_000_000)]


class Limits(BaseModel):
    """``None``: no limit. Minutes begin anew with every request: what was used comes back evenly."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    requests_per_minute: Amount | None = None
    #: Prompt and answer; estimated when a request comes in, as they were when it has ended.
    tokens_per_minute: Amount | None = None
    #: Jobs that were accepted and haven't ended, lines of batches and other work of that class left out.
    concurrent_jobs: Amount | None = None
    #: Prompt tokens of such work that was taken in and hasn't ended.
    batch_tokens: Amount | None = None


class KeyLimits(Limits):
    """What a key may use, and what it may spend in a window. The tenant's and other budgets count beside it."""

    budget_usd: float | None = Field(None, ge=0, le=1_000_000, allow_inf_nan=False)
    budget_tokens: Amount | None = None
    budget_window: Period = "month"

    def budgets(self, key_id: str | None) -> tuple[Budget, ...]:
        """Named after the key."""
        if key_id is None:
            return ()
        money = {"name": key_id, "usd": self.budget_usd} if self.budget_usd is not None else None
        tokens = {"name": f"{key_id}.tokens", "tokens": self.budget_tokens} if self.budget_tokens is not None else None
        given = [budget for budget in (money, tokens) if budget]
        return tuple(Budget.model_validate(budget | {"key": key_id, "window": self.budget_window}) for budget in given)


TenantLimits = dict[TenantName | Literal["*"], Limits]


@dataclass(frozen=True, slots=True)
class Levels:
    """How much is left of the tightest limits that a request met: the limit, what remains, and milliseconds until all
    of it is back. ``None``: there is no limit of that kind."""

    requests: tuple[int, int, int] | None = None
    tokens: tuple[int, int, int] | None = None
