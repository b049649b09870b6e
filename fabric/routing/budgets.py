"""What a job may take out of which budgets. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from fabric.contracts.budget import NANO, Budget, Charge, period_of, window_at
from fabric.contracts.catalog import Catalog, Deployment
from fabric.contracts.errors import BudgetUsedUp
from fabric.contracts.job import JobSpec
from fabric.routing.constraints import NO_LIMITS, check
from fabric.routing.cost import worst_cost


def charged(spec: JobSpec, catalog: Catalog, now_ms: int, own: Sequence[Budget] = ()) -> tuple[JobSpec, str]:
    """The job, and what is to be reserved for it: a line ``NAME WINDOW LIMIT AMOUNT END UNIT/SCOPE`` for each of its
    budgets. ``own``: its key's, beside those of the catalogue.

    Reserved is what the answer costs at worst at the dearest place that is permitted, or the request's own cap where
    that is less; and of tokens the prompt and the longest answers. Where a hard budget of money counts, the reservation
    becomes the job's cap: all its attempts together stay within. ``LIMIT`` and ``AMOUNT`` are billionths of a US
    dollar, or tokens; a limit of ``-`` is none; ``END`` is in milliseconds since the epoch, 0 for never.

    Raises:
        BudgetUsedUp: it needs more than a hard budget gives in a whole window.
    """
    budgets = [budget for budget in (*catalog.budgets, *own) if budget.covers(spec)]
    if not budgets:
        return spec, ""
    places = _places(spec, catalog)
    amounts = {"usd": math.ceil(_worst(spec, places) * NANO), "tokens": _most_tokens(spec, places)}
    if any(budget.hard and budget.unit == "usd" for budget in budgets):
        spec = replace(spec, max_cost_usd=amounts["usd"] / NANO)
    lines = []
    for budget in budgets:
        amount = amounts[budget.unit]
        if budget.hard and amount > budget.limit:
            refused = BudgetUsedUp(
                f"This request could take more than the whole budget {budget.name} of a window: it can never be taken. "
                "A smaller `max_tokens` or `fabric.max_cost_usd` reserves less; the operator can raise the budget."
            )
            refused.of = budget.scope, budget.unit
            raise refused
        if amount:
            window = window_at(budget.window, now_ms)
            limit, of = budget.limit if budget.hard else None, f"{budget.unit}/{budget.scope}"
            lines.append(str(Charge(budget.name, window.name, limit, amount, window.end_ms or 0, of)))
    return spec, "\n".join(lines)


def charged_again(spec: JobSpec, catalog: Catalog, now_ms: int, before: str) -> tuple[JobSpec, str]:
    """As ``charged``, for a job that comes back with what was reserved for it ``before``: in the windows of now, of the
    catalogue's budgets of now. Those that its key was made with stay what they were, and so does its batch's cap.

    Raises:
        BudgetUsedUp: it needs more than a hard budget gives in a whole window.
    """
    spec, charges = charged(spec, catalog, now_ms)
    lines = charges.splitlines()
    for charge in map(Charge.parse, before.splitlines()):
        if charge.name.partition(".")[0] in (spec.key_id, spec.batch_id):
            current = window_at(period_of(charge.window), now_ms)
            lines.append(str(replace(charge, window=current.name, end_ms=current.end_ms or 0)))
    return spec, "\n".join(lines)


def _places(spec: JobSpec, catalog: Catalog) -> list[Deployment]:
    model = catalog.by_model.get(spec.model)
    rule = catalog.privacy.of(spec.privacy)
    return [d for d in (model.deployments if model else ()) if check(spec, d, rule, NO_LIMITS) is None]


def windows(catalog: Catalog, now_ms: int) -> list[tuple[str, str]]:
    """Every budget's name, and the name of its window of now."""
    return [(budget.name, window_at(budget.window, now_ms).name) for budget in catalog.budgets]


def used(catalog: Catalog, taken: Iterable[int]) -> dict[str, float]:
    """Budget -> share of its window that is ``taken`` (spent or reserved, in the budget's own whole units)."""
    return {b.name: amount / b.limit if b.limit else 1.0 for b, amount in zip(catalog.budgets, taken, strict=True)}


def _worst(spec: JobSpec, places: Sequence[Deployment]) -> float:
    """US dollars."""
    worst = max((worst_cost(spec, deployment) for deployment in places), default=0.0)
    return worst if spec.max_cost_usd is None else min(worst, spec.max_cost_usd)


def _most_tokens(spec: JobSpec, places: Sequence[Deployment]) -> int:
    """Prompt and answers; an answer without a limit may fill the largest window."""
    longest = spec.max_output_tokens
    if spec.endpoint == "/v1/embeddings":
        longest = 0
    elif longest is None:
        longest = max((max(0, d.context_window - spec.prompt_tokens) for d in places), default=0)
    return spec.prompt_tokens + spec.answers * longest
