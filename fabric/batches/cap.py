"""What all lines of a batch together may cost: reserved when a line is handed over, settled when it ends.

A budget of the batch's own (``docs/budgets.md``): what a line costs at worst at the place that its plan has for it is
reserved in the call that accepts it, so the sum of what is spent and what may yet be never exceeds the cap, whoever
dies when. The reservation is the line's own cap: it may go elsewhere only where that costs no more.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil

from fabric.contracts.budget import NANO, Charge, Nano
from fabric.contracts.catalog import Catalog
from fabric.contracts.errors import FabricError
from fabric.contracts.job import JobSpec
from fabric.ledger import Ledger, usage
from fabric.ledger.batches import Batch
from fabric.routing.constraints import NO_LIMITS, check
from fabric.routing.cost import worst_cost
from fabric.store import Store
from fabric.store.budgets import Balance, Opening, balances, open_

_WINDOW = "total"


class CapUsedUp(FabricError):
    """A line's end when what is left of its batch's cap isn't enough for it anywhere, and no more will come back."""

    status, type, code, fault = 402, "policy_error", "batch_cap_used_up", "policy"


class NoRoomYet(Exception):
    """What other lines have reserved may be enough for this one when they end."""


def balance_of(store: Store, ledger: Ledger, batch: Batch) -> Balance:
    """What is spent and reserved; opened with what the ledger knows where the store doesn't know it (any more).

    Raises:
        Unavailable: the store or the ledger is away.
    """
    (known,) = store(balances([(batch.id, _WINDOW)]))
    if known is not None:
        return known
    spent = round(ledger.read(usage.billed_of_batch, batch.id) * NANO)
    store(open_([Opening(batch.id, _WINDOW, batch.expires_ms, spent)]))
    return Balance(0, spent)


class Purse:
    """The cap as it is while lines are handed over. ``last``: none of the batch's lines is in the store, so what can't
    be paid now never can."""

    def __init__(self, batch_id: str, cap_usd: float, balance: Balance, catalog: Catalog, *, last: bool) -> None:
        self._batch_id = batch_id
        self._cap: Nano = round(cap_usd * NANO)
        self._left: Nano = self._cap - balance.taken
        self._catalog = catalog
        self._last = last

    def fit(self, spec: JobSpec, place: str) -> tuple[JobSpec, str]:
        """The line with its place and its own cap, and what is to be reserved for it.

        Raises:
            CapUsedUp: it can't be paid for.
            NoRoomYet: it can't be paid for now.
        """
        rule = self._catalog.privacy.of(spec.privacy)
        permitted = [
            d for d in self._catalog.by_model[spec.model].deployments if check(spec, d, rule, NO_LIMITS) is None
        ]
        if not permitted:
            return spec, ""  # nothing is spent on it: it ends with the reasons
        worst = {deployment.name: worst_cost(spec, deployment) for deployment in permitted}
        cheapest = min(worst, key=lambda name: (worst[name], name))
        place = place if place in worst else cheapest
        if _nano(spec, worst[place]) > self._left and self._last:
            place = cheapest
        amount = _nano(spec, worst[place])
        if amount > self._left:
            if not self._last:
                raise NoRoomYet
            raise CapUsedUp(
                f"The batch may cost ${self._cap / NANO:.6f}, and ${max(0, self._left) / NANO:.6f} of that is left: "
                f"this line could cost ${amount / NANO:.6f} at {place}, the cheapest place for it."
            )
        self._left -= amount
        self._last = self._last and not amount
        own = max(worst[place], amount / NANO) if spec.max_cost_usd is None else spec.max_cost_usd
        spec = replace(spec, planned=place, max_cost_usd=min(own, max(worst[place], amount / NANO)))
        charge = str(Charge(self._batch_id, _WINDOW, self._cap, amount, 0, "usd/batch")) if amount else ""
        return spec, charge


def _nano(spec: JobSpec, worst_usd: float) -> Nano:
    return ceil((worst_usd if spec.max_cost_usd is None else min(worst_usd, spec.max_cost_usd)) * NANO)
