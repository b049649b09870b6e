"""What a new key is asked for with, over HTTP and on the command line: one set of rules."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from fabric.contracts.budget import Period
from fabric.contracts.catalog import Privacy, Tier
from fabric.contracts.key import Permissions, Scope
from fabric.contracts.limits import Amount, KeyLimits
from fabric.contracts.openai import ModelName, Shape
from fabric.contracts.terms import TenantName

_Name = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,128}$")]
_Region = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
#: Of a key that names none: all that is done within a tenant.
_USUAL: tuple[Scope, ...] = ("inference", "batch", "read", "dlq")
#: Ten years: whoever wants a key for longer wants one that doesn't expire.
LONGEST_S = 10 * 366 * 86_400
#: How long a rotated key may go on.
LONGEST_OVERLAP_S = 30 * 86_400


def _once(values: list[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _some(limit: int) -> object:
    return Field(min_length=1, max_length=limit)


class KeyRequest(Shape):
    """``POST /v1/keys``. What is left out isn't held back: all models, tiers and regions, no floor, no end."""

    tenant: TenantName
    name: _Name | None = None
    scopes: Annotated[list[Scope], _some(8), AfterValidator(_once)] = Field(default_factory=lambda: list[Scope](_USUAL))
    models: Annotated[list[ModelName], _some(256), AfterValidator(_once)] | None = None
    tiers: Annotated[list[Tier], _some(8), AfterValidator(_once)] | None = None
    regions: Annotated[list[_Region], _some(64), AfterValidator(_once)] | None = None
    privacy_floor: Privacy | None = None
    requests_per_minute: Amount | None = None
    tokens_per_minute: Amount | None = None
    concurrent_jobs: Amount | None = None
    batch_tokens: Amount | None = None
    budget_usd: Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False)] | None = None
    budget_tokens: Amount | None = None
    budget_window: Period | None = None
    #: Seconds from now.
    expires_in_s: Annotated[int, Field(ge=1, le=LONGEST_S)] | None = None

    @property
    def permissions(self) -> Permissions:
        return Permissions(
            models=tuple(self.models) if self.models else None,
            tiers=tuple(self.tiers) if self.tiers else None,
            regions=tuple(self.regions) if self.regions else None,
            privacy_floor=self.privacy_floor,
            limits=self._limits,
        )

    @property
    def _limits(self) -> KeyLimits | None:
        given = {name: getattr(self, name) for name in KeyLimits.model_fields}
        given = {name: value for name, value in given.items() if value is not None}
        return KeyLimits(**given) if given.keys() - {"budget_window"} else None

    @model_validator(mode="after")
    def _a_window_of_something(self) -> KeyRequest:
        if self.budget_window is not None and self.budget_usd is None and self.budget_tokens is None:
            raise ValueError("`budget_window` needs `budget_usd` or `budget_tokens`")
        return self


class RotationRequest(Shape):
    """``POST /v1/keys/{id}/rotate``. ``overlap_s``: how long the old key still works beside the new one."""

    overlap_s: Annotated[int, Field(ge=0, le=LONGEST_OVERLAP_S)] = 0
