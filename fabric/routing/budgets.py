"""What a job may take out of which budgets. Pure."""

from __future__ import annotations

import math
from dataclasses import replace

from fabric.contracts.budget import NANO, window_at
from fabric.contracts.catalog import Catalog
from fabric.contracts.job import JobSpec
from fabric.routing.constraints import NO_LIMITS, check
from fabric.routing.cost import worst_cost


def charged(spec: JobSpec, catalog: Catalog, now_ms: int) -> tuple[JobSpec, str]:
    """The job, and what is to be reserved for it: a line ``NAME WINDOW LIMIT AMOUNT END`` for each of its budgets.

    Reserved is what the answer costs at worst at the dearest place that is permitted, or the request's own cap where
    that is less. Where a hard budget counts, the reservation becomes the job's cap: all its attempts together stay
    within. ``LIMIT`` and ``AMOUNT`` are billionths of a US dollar, a limit of ``-`` is none; ``END`` is in
    milliseconds since the epoch, 0 for never.
    """
    budgets = [budget for budget in catalog.budgets if budget.covers(spec)]
    if not budgets:
        return spec, ""
    amount = math.ceil(_worst(spec, catalog) * NANO)
    if any(budget.hard for budget in budgets):
        spec = replace(spec, max_cost_usd=amount / NANO)
    if not amount:
        return spec, ""
    lines = []
    for budget in budgets:
        window = window_at(budget.window, now_ms)
        limit = budget.limit if budget.hard else "-"
        lines.append(f"{budget.name} {window.name} {limit} {amount} {window.end_ms or 0}")
    return spec, "\n".join(lines)


def _worst(spec: JobSpec, catalog: Catalog) -> float:
    """US dollars."""
    model = catalog.by_model.get(spec.model)
    rule = catalog.privacy.of(spec.privacy)
    places = [d for d in (model.deployments if model else ()) if check(spec, d, rule, NO_LIMITS) is None]
    worst = max((worst_cost(spec, deployment) for deployment in places), default=0.0)
    return worst if spec.max_cost_usd is None else min(worst, spec.max_cost_usd)
