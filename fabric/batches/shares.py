"""Who may have how many lines in the store. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Load:
    """``in_hand``: lines of a batch that are in the store; ``waiting``: lines that are not yet."""

    batch_id: str
    tenant: str
    in_hand: int
    waiting: int

    @property
    def wanted(self) -> int:
        return self.in_hand + self.waiting


def shares(loads: Iterable[Load], window: int) -> dict[str, int]:
    """Batch -> lines that it may have in the store: the same for every tenant, then for every batch of a tenant.

    What one doesn't need goes to the others, and each gets at least one. A batch that already has more than its
    share (it was alone before) keeps it, so lines that nobody runs can't lock others out; all together are
    then above the window for a while, by the logarithm of the number of batches at most.
    """
    tenants: dict[str, dict[str, int]] = {}
    for load in loads:
        tenants.setdefault(load.tenant, {})[load.batch_id] = load.wanted
    per_tenant = evenly({tenant: sum(wanted.values()) for tenant, wanted in tenants.items()}, window)
    return {
        batch_id: share
        for tenant, wanted in tenants.items()
        for batch_id, share in evenly(wanted, per_tenant[tenant]).items()
    }


def evenly(wanted: Mapping[K, int], total: int) -> dict[K, int]:
    """Max-min fair: nobody gets more than they want, nobody could get more without taking it from one with less."""
    granted: dict[K, int] = {}
    left = total
    for position, (key, want) in enumerate(sorted(wanted.items(), key=lambda item: item[1])):
        granted[key] = min(want, max(1, left // (len(wanted) - position)))
        left = max(0, left - granted[key])
    return granted
