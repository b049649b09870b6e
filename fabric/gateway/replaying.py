"""Parked jobs line up again: what they may cost is reserved of the budgets, in the windows, of now, and their text is
sealed for the zones whose workers may read it now."""

from __future__ import annotations

import time

from fabric.contracts.job import JobSpec
from fabric.gateway.gateway import Gateway
from fabric.routing.budgets import charged_again
from fabric.store import reads, transitions


async def replay(gateway: Gateway, spec: JobSpec) -> str:
    """The job's state afterwards: ``queued``, another one for a job that isn't parked, ``""`` for one that is gone, or
    why it stays parked: ``over`` or ``unready``.

    Raises:
        BrokenSeal: its text can't be read any more.
        BudgetUsedUp: it needs more than a hard budget gives in a whole window.
    """
    before = await gateway.ask(reads.charges(spec.id))
    spec, charges = charged_again(spec, gateway.catalog, time.time_ns() // 1_000_000, before)
    payload = await gateway.ask(reads.payload(spec.id))
    if payload:
        payload = gateway.sealed_payload(spec, gateway.seals.opened_payload(spec, payload))
    (state,) = await gateway.ask(transitions.replay_as(spec, charges, payload or b""))
    return state
