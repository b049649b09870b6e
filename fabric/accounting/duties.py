"""Beside the recorder: notes how long workers are up, and forgets rows that are too old. Any number may run."""

from __future__ import annotations

import logging
import threading
import time

from fabric.contracts.catalog import Catalog
from fabric.contracts.errors import Unavailable
from fabric.ledger import Ledger, usage, worker_hours
from fabric.ledger.sums import DAY_MS
from fabric.store import Store, transitions

log = logging.getLogger(__name__)

#: Between two looks. A worker that dies in between is counted up to the last one.
_LOOK_S = 30.0
#: Between two batches of rows to forget: others write, too.
_PRUNE_PAUSE_S = 0.1


class Bookkeeper:
    """Blocking; one thread."""

    def __init__(
        self,
        store: Store,
        ledger: Ledger,
        catalog: Catalog,
        *,
        retention_days: int | None = None,
        look_s: float = _LOOK_S,
    ) -> None:
        """``retention_days``: how long rows of single attempts stay; ``None``: for good."""
        self._store = store
        self._ledger = ledger
        self._catalog = catalog
        self._retention_days = retention_days
        self._look_s = look_s
        self._noted_ms = 0

    def renew(self, catalog: Catalog) -> None:
        """Prices count from the next look on. For any thread."""
        self._catalog = catalog

    def run(self, stop: threading.Event) -> None:
        """Until ``stop`` is set."""
        while True:
            try:
                self.look()
                while not stop.is_set() and self.prune():
                    stop.wait(_PRUNE_PAUSE_S)
            except Unavailable as error:
                log.debug("the books wait: %s", error)  # the recorder says it louder
            if stop.wait(self._look_s):
                return

    def look(self, now_ms: int | None = None) -> None:
        """Notes every live worker's time up to now.

        Raises:
            Unavailable: the store or the ledger is away.
        """
        workers = self._store(transitions.room()).workers
        hourly = {name: d.price.machine_usd_per_hour for name, d in self._catalog.by_deployment.items()}
        up = [
            worker_hours.Up(
                worker=worker.id,
                tier=worker.tier,
                slots=sum(worker.slots.values()),
                started_ms=worker.started_ms,
                usd_per_hour=max((hourly.get(name, 0.0) for name in worker.slots), default=0.0),
            )
            for worker in workers
        ]
        now = now_ms or int(time.time() * 1000)
        if up:
            self._ledger.write(worker_hours.note, up, now, self._noted_ms)
        self._noted_ms = now

    def prune(self) -> int:
        """Forgets some rows that are too old; answers how many. Raises ``Unavailable``."""
        if self._retention_days is None:
            return 0
        return self._ledger.write(usage.prune, int(time.time() * 1000) - self._retention_days * DAY_MS)
