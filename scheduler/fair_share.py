"""Fair shares between tenants: deficit round robin over tokens.

Tenants whose jobs wait for the same model take turns. One that has credit may have jobs taken; what these jobs
are expected to take, in tokens of prompt and answer, is charged to it when they are sent. Once nobody who could go
on has credit, all who could get a quantum each, times their weight. So over any time in which two tenants always
have jobs waiting, and room for them, their tokens differ by little more than a quantum and a job (Shreedhar and
Varghese, "Efficient fair queuing using deficit round robin", 1996). Room that one can't use goes to the others:
nothing stands idle, and nobody owes for what nobody else wanted.

Each scheduler keeps its own credits, in memory: what each of them sends is fair, so all of it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from math import floor

#: Tokens of one turn. More make fewer turns and larger messages; fewer are fair over a shorter time.
QUANTUM = 4_096
#: What a job takes where none of its kind has been seen.
_PRIOR_TOKENS = 256.0
#: How much the newest job counts in the mean of its kind.
_WEIGHT = 0.05

Kind = tuple[str, str]  #: tenant and model


class FairShare:
    """The credits of one scheduler, in tokens. Not for several threads."""

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self._weights = weights or {}
        self._credits: dict[Kind, float] = {}
        self._means: dict[Kind, float] = {}
        self._of_model: dict[str, float] = {}

    def weigh(self, weights: Mapping[str, float]) -> None:
        """From now on these count; a tenant that isn't named has 1."""
        self._weights = weights

    def credit(self, kind: Kind) -> float:
        return self._credits.get(kind, 0.0)

    def job_tokens(self, kind: Kind) -> float:
        """What a job of that tenant and model has taken lately, in the mean, or one of that model; at least 1."""
        return self._means.get(kind) or self._of_model.get(kind[1], _PRIOR_TOKENS)

    def charge(self, kind: Kind, tokens: float) -> None:
        """A job that was sent. ``tokens``: expected, of prompt and answers."""
        tokens = max(1.0, tokens)
        self._credits[kind] = self._credits.get(kind, 0.0) - tokens
        mean = self._means.get(kind, tokens)
        self._means[kind] = self._of_model[kind[1]] = mean + _WEIGHT * (tokens - mean)

    def settle(self, waiting: Iterable[Kind]) -> None:
        """Before a round: who has nothing waiting is forgotten, and who waits alone for a model owes nothing. Turns
        that were given for more than was sent in the end are taken back, from all of the model."""
        of_model: dict[str, set[Kind]] = {}
        for kind in waiting:
            of_model.setdefault(kind[1], set()).add(kind)
        credits: dict[Kind, float] = {}
        for kinds in of_model.values():
            too_many = max(0.0, max(self.credit(kind) / self._turn(kind[0]) for kind in kinds) - 1)
            for kind in kinds:
                left = self.credit(kind) - too_many * self._turn(kind[0])
                credits[kind] = max(0.0, left) if len(kinds) == 1 else left
        self._credits = credits
        self._means = {kind: mean for kind, mean in self._means.items() if kind in credits}

    def next_turn(self, kinds: Collection[Kind], spent: Mapping[Kind, float]) -> None:
        """Quanta for all of them, as many as it takes until one has credit beyond what it has ``spent`` in this
        round; none where one has."""
        short = (spent.get(kind, 0.0) - self.credit(kind) for kind in kinds)
        turns = max(0, min(floor(tokens / self._turn(kind[0])) + 1 for kind, tokens in zip(kinds, short, strict=True)))
        for kind in kinds:
            self._credits[kind] = self.credit(kind) + turns * self._turn(kind[0])

    def _turn(self, tenant: str) -> float:
        return QUANTUM * self._weights.get(tenant, 1.0)
