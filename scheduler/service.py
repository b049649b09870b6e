"""The scheduler process: a loop that is woken by the store, and a thread for the standing duties."""

from __future__ import annotations

import logging
import threading

from redis.exceptions import RedisError

from fabric.broker import Sender, make_app
from fabric.contracts.catalog import Catalog
from fabric.contracts.errors import Unavailable
from fabric.store import Store
from fabric.store.reads import WAKE
from scheduler.duties import run_duties
from scheduler.loop import Loop

log = logging.getLogger(__name__)

#: Looks without being woken this often, in case a wake-up was lost with a killed store.
_LOOK_S = 1.0
_AWAY_S = 0.2


def run(*, redis_url: str, broker_url: str, catalog: Catalog, stop: threading.Event) -> None:
    """Runs until ``stop`` is set. The store and the broker may come and go."""
    store, duties_store = Store(redis_url), Store(redis_url)
    sender = Sender(make_app(broker_url))
    failures: list[Exception] = []

    def do_duties() -> None:
        try:
            run_duties(duties_store, stop)
        except Exception as error:  # noqa: BLE001 - raised below: a scheduler without its duties must not go on
            failures.append(error)
            stop.set()

    duties = threading.Thread(target=do_duties, name="duties", daemon=True)
    duties.start()
    log.info("scheduling %d models on %d deployments", len(catalog.by_model), len(catalog.by_deployment))
    try:
        _schedule(store, sender, catalog, stop)
    finally:
        stop.set()
        duties.join(timeout=2)
        sender.close()
        store.close()
        duties_store.close()
    if failures:
        raise failures[0]


def _schedule(store: Store, sender: Sender, catalog: Catalog, stop: threading.Event) -> None:
    loop = Loop(store, sender, catalog)
    away = False
    while not stop.is_set():
        try:
            while loop.round():
                if stop.is_set():
                    break
            store.redis.blpop([WAKE], timeout=_LOOK_S)
            if away:
                log.info("the store and the broker are back")
            away = False
        except (Unavailable, RedisError, OSError) as error:
            if not away:
                log.warning("waiting: %s", error if isinstance(error, Unavailable) else "the job store is away")
            away = True
            stop.wait(_AWAY_S)
