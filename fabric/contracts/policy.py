"""Policies: what makes one permitted place better than another, and what an answer may take at most. Values only."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

PolicyKind = Literal["local-first", "cloud-first", "cheapest", "fastest", "best-quality", "weighted"]
POLICY_KINDS: tuple[PolicyKind, ...] = (
    "local-first",
    "cloud-first",
    "cheapest",
    "fastest",
    "best-quality",
    "weighted",
)
PolicyName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


class _Value(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Weights(_Value):
    """How much each counts; only their ratios matter."""

    cost: float = Field(0.0, ge=0, allow_inf_nan=False)
    latency: float = Field(0.0, ge=0, allow_inf_nan=False)
    quality: float = Field(0.0, ge=0, allow_inf_nan=False)

    @property
    def total(self) -> float:
        return self.cost + self.latency + self.quality

    @model_validator(mode="after")
    def _something_counts(self) -> Weights:
        if not self.total:
            raise ValueError("at least one of `cost`, `latency` and `quality` must be more than 0")
        return self


class Policy(_Value):
    """One way to order places. The limits hold for every kind, beside the request's own: the stricter counts."""

    kind: PolicyKind
    #: Seconds from the decision to the finished answer.
    max_latency_s: float | None = Field(None, gt=0, allow_inf_nan=False)
    #: US dollars that an answer may cost at worst.
    max_cost_usd: float | None = Field(None, ge=0, allow_inf_nan=False)
    weights: Weights | None = None
    #: Whether a request that one provider's content filter refused may be shown to another place.
    fall_back_on_refusal: bool = False
    #: Whether a job that takes longer than 19 of 20 would is tried at a second place, too; a stream until it has begun.
    hedge: bool = False

    @model_validator(mode="after")
    def _weights_are_for_weighted(self) -> Policy:
        if self.kind == "weighted" and self.weights is None:
            raise ValueError("a `weighted` policy needs `weights`, such as {cost: 2, latency: 1, quality: 1}")
        if self.kind != "weighted" and self.weights is not None:
            raise ValueError(f"`weights` are for `kind: weighted`; this policy is `{self.kind}`")
        return self


#: Those that exist without configuration: one of each kind, under its name. A configured one of the same
#: name takes its place.
BUILT_IN: dict[str, Policy] = {
    kind: Policy(kind=kind, weights=Weights(cost=1, latency=1, quality=1) if kind == "weighted" else None)
    for kind in POLICY_KINDS
}
DEFAULT_POLICY = "local-first"
