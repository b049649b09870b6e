"""Opens the windows of budgets, with what the ledger knows was spent in them. Any number may run."""

from __future__ import annotations

import logging
import threading
import time

from fabric.contracts.budget import NANO, Budget, Nano, Window, window_at
from fabric.contracts.catalog import Catalog
from fabric.contracts.errors import Unavailable
from fabric.ledger import Ledger, keys
from fabric.ledger.costs import Filter, grouped
from fabric.ledger.keys import Key
from fabric.store import Store, budgets
from fabric.store.budgets import Balance, Opening

log = logging.getLogger(__name__)

#: Between two looks: how long jobs of a budget are turned away after the store has lost its memory.
_LOOK_S = 1.0
#: The next window is opened this long before it begins.
_AHEAD_MS = 120_000


class BudgetKeeper:
    """Blocking; one thread."""

    def __init__(self, store: Store, ledger: Ledger, catalog: Catalog, *, look_s: float = _LOOK_S) -> None:
        self._store = store
        self._ledger = ledger
        self._catalog = catalog
        self._look_s = look_s
        self._keys: dict[str, Key] = {}
        self._revision = 0

    def renew(self, catalog: Catalog) -> None:
        """For any thread."""
        self._catalog = catalog

    def run(self, stop: threading.Event) -> None:
        """Until ``stop`` is set."""
        while True:
            try:
                self.look(time.time_ns() // 1_000_000)
            except Unavailable as error:
                log.debug("budgets wait: %s", error)  # the recorder says it louder
            if stop.wait(self._look_s):
                return

    def look(self, now_ms: int) -> int:
        """Opens what isn't open, and tells of soft ones that are used up; answers how many it opened.

        Raises:
            Unavailable: the store or the ledger is away.
        """
        wanted = list(_windows((*self._catalog.budgets, *self._of_keys(now_ms)), now_ms))
        if not wanted:
            return 0
        open_ = self._store(budgets.balances([(budget.name, window.name) for budget, window in wanted]))
        for (budget, window), balance in zip(wanted, open_, strict=True):
            if balance is not None and not budget.hard and balance.reserved + balance.spent > budget.limit:
                self._tell(budget, window, balance)
        missing = [pair for pair, balance in zip(wanted, open_, strict=True) if balance is None]
        if not missing:
            return 0
        openings = [Opening(b.name, w.name, w.end_ms, self._spent(b, w)) for b, w in missing]
        return self._store(budgets.open_(openings))

    def _of_keys(self, now_ms: int) -> list[Budget]:
        """Those that keys were made with. That a row is genuine doesn't matter here: only what a job names counts."""
        for key in self._ledger.read(keys.changed, self._revision):
            self._revision = key.revision
            self._keys[key.id] = key
            if not key.permissions.budgets(key.id) or key.state(now_ms) != "active":
                del self._keys[key.id]
        return [budget for key in self._keys.values() for budget in key.permissions.budgets(key.id)]

    def _tell(self, budget: Budget, window: Window, balance: Balance) -> None:
        """Once in each window, whichever process sees it first."""
        if self._store(budgets.warn_once(budget, window, balance)):
            log.warning("the soft budget %s is used up in its window %s", budget.name, window.name)

    def _spent(self, budget: Budget, window: Window) -> Nano:
        which = Filter(window.start_ms, window.end_ms, tenant=budget.tenant, key=budget.key, tag=budget.tag)
        rows, _ = self._ledger.read(grouped, which)
        if budget.unit == "tokens":
            return sum(int(row["input_tokens"]) + int(row["output_tokens"]) for row in rows)
        usd: float = sum(row["cost_usd"] - row["machine_usd"] for row in rows)
        return round(usd * NANO)


def _windows(asked: tuple[Budget, ...], now_ms: int) -> list[tuple[Budget, Window]]:
    """Those of now, and those that begin soon."""
    found = []
    for budget in asked:
        now, soon = window_at(budget.window, now_ms), window_at(budget.window, now_ms + _AHEAD_MS)
        found += [(budget, window) for window in (now, soon)][: 1 if now == soon else 2]
    return found
