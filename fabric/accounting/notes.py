"""What is noted beside a completion: under which rules it was decided, what it should have cost, what elsewhere, and
how far from the truth its prediction was."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from fabric.contracts.catalog import Catalog
from fabric.contracts.completion import Completion
from fabric.contracts.decision import Decision, Scored
from fabric.contracts.job import JobState
from fabric.ledger.usage import Note
from fabric.routing.equivalent import Comparison
from fabric.store import Store, counts, transitions

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

    def of(self, completions: Sequence[Completion]) -> Beside:
        """One call to the store for all of them.

        Raises:
            Unavailable: the store is away.
        """
        decided = [done.spec.id for done in completions if done.attempt]
        decisions = dict(zip(decided, self._store(transitions.decisions(decided)), strict=True)) if decided else {}
        return Beside(decisions, self._comparison)


class Beside:
    """What is known of some completions beside themselves."""

    def __init__(self, decisions: Mapping[str, bytes], comparison: Comparison) -> None:
        self._decisions = decisions
        self._comparison = comparison

    def __call__(self, done: Completion) -> Note:
        policy_hash, places = _foreseen(self._decisions.get(done.spec.id, b""))
        place = places.get(done.deployment or "")
        return Note(
            policy_hash,
            None if place is None else place.expected_cost_usd,
            *self._comparison.of(done.spec, done.measures.usage),
        )

    def count_equivalents(self, amounts: counts.Amounts, completions: Iterable[Completion]) -> None:
        """Adds what the cloud would have taken for the tokens of answers, as the ledger's rows have it."""
        for done in completions:
            if done.state == JobState.SUCCEEDED and not done.late:
                cloud_usd, _ = self._comparison.of(done.spec, done.measures.usage)
                if cloud_usd:
                    counts.compared(amounts, done, cloud_usd)

    def count_errors(self, amounts: counts.Amounts, completions: Iterable[Completion]) -> None:
        """Adds how wrong the predictions were that rested on measurements, of what succeeded where it was sent.

        They count from the decision, which is when the job was dispatched.
        """
        for done in completions:
            place = _foreseen(self._decisions.get(done.spec.id, b""))[1].get(done.deployment or "")
            if place is None or not place.measured or done.state != JobState.SUCCEEDED or done.dispatched_ms is None:
                continue
            if place.expected_finish_s is not None:
                took_s = (done.finished_ms - done.dispatched_ms) / 1000
                counts.mispredicted(amounts, "finish", place.tier, place.expected_finish_s, took_s)
            first_s, seen = done.measures.first_token_s, place.expected_first_token_s
            if seen is not None and first_s is not None and done.claimed_ms is not None:
                took_s = (done.claimed_ms - done.dispatched_ms) / 1000 + done.measures.gate_s + first_s
                counts.mispredicted(amounts, "first_token", place.tier, seen, took_s)


@lru_cache(_KEPT)
def _foreseen(decision: bytes) -> tuple[str | None, dict[str, Scored]]:
    """The rules' hash, and what was expected of each place."""
    if not decision:
        return None, {}
    try:
        loaded = Decision.load(decision)
    except (ValueError, KeyError, TypeError):
        return None, {}  # of another version of the fabric
    return loaded.policy_hash, {place.deployment: place for place in loaded.plan}
