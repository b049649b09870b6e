"""The decision: which candidates there were, what eliminated each, and the plan that is left."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import orjson

Reason = Literal[
    "privacy",
    "permission",
    "capability",
    "context",
    "budget",
    "deadline",
    "health",
    "region",
    "rule",
    "exhausted",
]


@dataclass(frozen=True, slots=True)
class Elimination:
    """Why a candidate is out: a fixed word for machines, a sentence for people."""

    deployment: str
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Scored:
    """A candidate that passed every constraint, with what the policy made of it: lower scores go first, and
    places with a live worker before all others.

    Seconds count from the decision. They are ``None`` where they can't be told: nobody works there, or the
    engine doesn't say when its first token comes.
    """

    deployment: str
    tier: str
    score: float
    expected_cost_usd: float
    expected_finish_s: float | None = None
    expected_first_token_s: float | None = None
    expected_wait_s: float | None = None
    #: Whether the prediction rests on jobs that ran there, rather than on what is usual for the tier.
    measured: bool = False
    live: bool = True


@dataclass(frozen=True, slots=True)
class Decision:
    """The ordered plan for one job, and how it came about. ``plan`` is empty when nothing remains."""

    policy: str
    policy_hash: str
    plan: tuple[Scored, ...]
    eliminated: tuple[Elimination, ...]
    #: The rule that had its say in it.
    rule: str | None = None

    @property
    def chosen(self) -> Scored | None:
        return self.plan[0] if self.plan else None

    def dump(self) -> bytes:
        return orjson.dumps(self)

    def asdict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def load(cls, data: bytes | str) -> Decision:
        values = orjson.loads(data)
        return cls(
            policy=values["policy"],
            policy_hash=values["policy_hash"],
            plan=tuple(Scored(**p) for p in values["plan"]),
            eliminated=tuple(Elimination(**e) for e in values["eliminated"]),
            rule=values.get("rule"),
        )
