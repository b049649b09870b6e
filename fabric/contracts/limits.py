"""Rate limits: how much may be asked for with a key, or by a tenant, at once and in a minute. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

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


TenantLimits = dict[TenantName | Literal["*"], Limits]


@dataclass(frozen=True, slots=True)
class Levels:
    """How much is left of the tightest limits that a request met: the limit, what remains, and milliseconds until all
    of it is back. ``None``: there is no limit of that kind."""

    requests: tuple[int, int, int] | None = None
    tokens: tuple[int, int, int] | None = None
