"""Whether a line that found no room in a budget may yet find some.

What others have reserved comes back when they end, and the next window brings a whole limit: for these a line waits.
What is *spent* until after the end of its batch doesn't come back in time, and the line fails with that reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from fabric.contracts.batch_line import error_line
from fabric.contracts.budget import NANO, Charge, Nano
from fabric.contracts.errors import BudgetUsedUp
from fabric.ledger.batches import Batch
from fabric.ledger.lines import Outcome
from fabric.store import Store
from fabric.store.budgets import Balance, balances
from fabric.store.transitions import Accepted, NewJob


def hopeless(store: Store, batch: Batch, jobs: Sequence[NewJob], answers: Sequence[Accepted]) -> list[Outcome]:
    """The ends of those lines among ``jobs`` that a budget will have no room for before their batch ends.

    Raises:
        Unavailable: the store is away.
    """
    over = [job for job, answer in zip(jobs, answers, strict=True) if answer.verdict == "over"]
    # The batch's own cap is kept by who hands its lines over.
    charges = {
        job.spec.id: [c for c in map(Charge.parse, job.charges.splitlines()) if c.name != batch.id] for job in over
    }
    asked = sorted({(charge.name, charge.window) for of_job in charges.values() for charge in of_job})
    if not asked:
        return []
    known = dict(zip(asked, store(balances(asked)), strict=True))
    ends = []
    for job in over:
        spent = next((c for c in charges[job.spec.id] if not may_yet_fit(c, known, batch.expires_ms)), None)
        if spent is not None:
            refused = _refusal(spent, known[spent.name, spent.window]).info
            line_no = job.spec.line_no or 0
            error = error_line(job.spec.custom_id, job.spec.id, line_no, refused, answered=True)
            ends.append(Outcome(line_no, "failed", error=error))
    return ends


def may_yet_fit(charge: Charge, known: Mapping[tuple[str, str], Balance | None], expires_ms: int) -> bool:
    """Whether its budget may have room for it before ``expires_ms``. Pure."""
    balance = known[charge.name, charge.window]
    if charge.limit is None or balance is None or 0 < charge.end_ms < expires_ms:
        return True
    return charge.amount <= charge.limit - balance.spent


def _refusal(charge: Charge, balance: Balance | None) -> BudgetUsedUp:
    left = max(0, (charge.limit or 0) - (balance.spent if balance else 0))
    when = "doesn't begin again"
    if charge.end_ms:
        end = datetime.fromtimestamp(charge.end_ms / 1000, UTC)
        when = f"begins again at {end:%Y-%m-%d %H:%M} UTC, after this batch's end"
    return BudgetUsedUp(
        f"This line could take {_amount(charge, charge.amount)}, and of the budget {charge.name}, which {when}, "
        f"{_amount(charge, left)} are left to spend. A smaller `max_tokens` or `fabric.max_cost_usd` reserves less; "
        "the operator can raise the budget."
    )


def _amount(charge: Charge, amount: Nano) -> str:
    return f"{amount:,} tokens" if charge.unit == "tokens" else f"${amount / NANO:.6f}"
