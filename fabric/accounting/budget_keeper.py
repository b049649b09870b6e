"""Opens the windows of budgets, with what the ledger knows was spent in them. Any number may run."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fabric.accounting.enlisting import enlist
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
#: After a budget began to count: until every gateway has read of it, and the ledger has what had just ended.
_SETTLED_MS = 10_000
#: The ledger is asked no more often than this for what the store may have forgotten.
_RECOUNT_MS = 60_000


class BudgetKeeper:
    """Blocking; one thread."""

    def __init__(
        self,
        store: Store,
        ledger: Ledger,
        catalog: Catalog,
        *,
        look_s: float = _LOOK_S,
        told: Callable[[Budget, Window, int], None] = lambda budget, window, used: None,
    ) -> None:
        """``told`` hears of soft budgets that are used up, and of the same window again after a restart."""
        self._told = told
        self._known: set[tuple[str, str]] = set()
        self._store = store
        self._ledger = ledger
        self._catalog = catalog
        self._look_s = look_s
        self._keys: dict[str, Key] = {}
        self._revision = 0
        self._new: dict[tuple[str, str], _New] = {}
        self._server = ""
        self._behind = False
        self._recounted_ms = 0

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
            if balance is not None and not budget.hard and balance.taken > budget.limit:
                self._tell(budget, window, balance)
        self._recount([pair for pair, balance in zip(wanted, open_, strict=True) if balance is not None], now_ms)
        missing = [pair for pair, balance in zip(wanted, open_, strict=True) if balance is None]
        openings = [Opening(b.name, w.name, w.end_ms, self._spent(b, w)) for b, w in missing]
        opened = self._store(budgets.open_(openings)) if openings else 0
        for budget, window in missing:
            if window.start_ms <= now_ms:
                self._new[budget.name, window.name] = _New(budget, window, now_ms)
        self._take_in(now_ms)
        return opened

    def _recount(self, opened: Sequence[tuple[Budget, Window]], now_ms: int) -> None:
        """A server that has started again may have forgotten the last second, which the ledger knows."""
        server = self._store(budgets.server())
        self._behind = self._behind or server != self._server
        self._server = server
        if self._behind and now_ms - self._recounted_ms >= _RECOUNT_MS:
            self._raise(opened)
            self._behind, self._recounted_ms = False, now_ms

    def _raise(self, which: Sequence[tuple[Budget, Window]]) -> None:
        known = [(budget.name, window.name, self._spent(budget, window)) for budget, window in which]
        if known and (count := self._store(budgets.raise_spent(known))):
            log.info("%d budgets had less spent than the ledger knows of", count)

    def _take_in(self, now_ms: int) -> None:
        """Jobs that were in before their budget: at once, and again when nobody takes any in without it."""
        for name, new in list(self._new.items()):
            settled = now_ms - new.since_ms >= _SETTLED_MS
            if new.begun and not settled:
                continue
            enlist(self._store, self._catalog, new.budget, new.window, now_ms)
            new.begun = True
            if settled:
                self._raise([(new.budget, new.window)])
                del self._new[name]

    def _of_keys(self, now_ms: int) -> list[Budget]:
        """Those that keys were made with. That a row is genuine doesn't matter here: only what a job names counts."""
        for key in self._ledger.read(keys.changed, self._revision):
            self._revision = key.revision
            self._keys[key.id] = key
            if not key.permissions.budgets(key.id) or key.state(now_ms) != "active":
                del self._keys[key.id]
        return [budget for key in self._keys.values() for budget in key.permissions.budgets(key.id)]

    def _tell(self, budget: Budget, window: Window, balance: Balance) -> None:
        """Once in each window, whichever process sees it first. Who listens is told before, and by each process once:
        so a crash in between is made good, and what hears of a window twice knows it again."""
        if (budget.name, window.name) not in self._known:
            self._told(budget, window, balance.taken)
            self._known.add((budget.name, window.name))
        if self._store(budgets.warn_once(budget, window, balance)):
            log.warning("the soft budget %s is used up in its window %s", budget.name, window.name)

    def _spent(self, budget: Budget, window: Window) -> Nano:
        which = Filter(window.start_ms, window.end_ms, tenant=budget.tenant, key=budget.key, tag=budget.tag)
        rows, _ = self._ledger.read(grouped, which)
        if budget.unit == "tokens":
            return sum(int(row["input_tokens"]) + int(row["output_tokens"]) for row in rows)
        usd: float = sum(row["cost_usd"] - row["machine_usd"] for row in rows)
        return round(usd * NANO)


@dataclass(slots=True)
class _New:
    """A window that was opened after it had begun. ``begun``: the jobs that there were then are counted."""

    budget: Budget
    window: Window
    since_ms: int
    begun: bool = False


def _windows(asked: tuple[Budget, ...], now_ms: int) -> list[tuple[Budget, Window]]:
    """Those of now, and those that begin soon."""
    found = []
    for budget in asked:
        now, soon = window_at(budget.window, now_ms), window_at(budget.window, now_ms + _AHEAD_MS)
        found += [(budget, window) for window in (now, soon)][: 1 if now == soon else 2]
    return found
