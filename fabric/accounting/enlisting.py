"""A budget that is new begins to count the jobs that were in before it, too."""

from __future__ import annotations

from fabric.contracts.budget import Budget, Window
from fabric.contracts.catalog import Catalog
from fabric.contracts.job import JobSpec
from fabric.routing.budgets import charged
from fabric.store import Store, budgets

#: Jobs of one call: the store serves nobody else while it runs.
_CHUNK = 256


def enlist(store: Store, catalog: Catalog, budget: Budget, window: Window, now_ms: int) -> int:
    """Reserves for every live job that was accepted in the window, without a limit: it is in already. Answers how many
    that were; again is nothing more.

    Raises:
        Unavailable: the store is away.
    """
    # Only this budget, as one that turns nobody away.
    alone = catalog.model_copy(update={"budgets": (budget.model_copy(update={"hard": False}),)})
    count, cursor = 0, 0
    while True:
        cursor, found = store(budgets.live(cursor))
        ids = [job_id for job_id, accepted_ms in found if accepted_ms >= window.start_ms]
        for chunk in (ids[i : i + _CHUNK] for i in range(0, len(ids), _CHUNK)):
            lines = [_line(spec, alone, now_ms) for spec in store(budgets.unlisted(budget.name, chunk))]
            named = [(job_id, line) for job_id, line in lines if line]
            count += store(budgets.enlist(budget.name, named)) if named else 0
        if not cursor:
            return count


def _line(spec: JobSpec, alone: Catalog, now_ms: int) -> tuple[str, str]:
    return spec.id, charged(spec, alone, now_ms)[1]
