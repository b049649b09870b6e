"""What is noted beside a completion: under which rules it was decided, what it should have cost, what elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from fabric.contracts.catalog import Catalog
from fabric.contracts.completion import Completion
from fabric.contracts.decision import Decision
from fabric.ledger.usage import Note
from fabric.routing.equivalent import Comparison
from fabric.store import Store, transitions

#: Decisions that are kept decoded. Lines of a batch share a few.
_KEPT = 1024


class Notes:
    """Blocking; for one thread."""

    def __init__(self, store: Store, catalog: Catalog) -> None:
        self._store = store
        self._comparison = Comparison(catalog)

    def renew(self, catalog: Catalog) -> None:
        """Prices count from the next call on. For any thread."""
        self._comparison = Comparison(catalog)

    def of(self, completions: Sequence[Completion]) -> Callable[[Completion], Note]:
        """One call to the store for all of them.

        Raises:
            Unavailable: the store is away.
        """
        decided = [done.spec.id for done in completions if done.attempt]
        decisions = dict(zip(decided, self._store(transitions.decisions(decided)), strict=True)) if decided else {}

        comparison = self._comparison

        def note(done: Completion) -> Note:
            policy_hash, expected = _foreseen(decisions.get(done.spec.id, b""))
            cost = expected.get(done.deployment or "")
            return Note(policy_hash, cost, *comparison.of(done.spec, done.measures.usage))

        return note


@lru_cache(_KEPT)
def _foreseen(decision: bytes) -> tuple[str | None, dict[str, float]]:
    """The rules' hash, and the expected cost by deployment."""
    if not decision:
        return None, {}
    try:
        loaded = Decision.load(decision)
    except (ValueError, KeyError, TypeError):
        return None, {}  # of another version of the fabric
    return loaded.policy_hash, {place.deployment: place.expected_cost_usd for place in loaded.plan}
