"""The scheduler process: a loop that is woken by the store, and a thread for the standing duties."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from redis.exceptions import RedisError

from fabric.broker import Sender, is_redis, make_app
from fabric.contracts.catalog import TIERS, Catalog
from fabric.contracts.errors import Unavailable
from fabric.contracts.signed import Signer
from fabric.store import Store
from fabric.store.reads import WAKE
from scheduler.broker_watch import BrokerWatch
from scheduler.dead_messages import DeadMessages
from scheduler.duties import run_duties
from scheduler.hedging import Hedges
from scheduler.loop import Loop

log = logging.getLogger(__name__)

#: Looks without being woken this often, in case a wake-up was lost with a killed store.
_LOOK_S = 1.0
_AWAY_S = 0.2


def run(
    *,
    redis_url: str,
    broker_url: str,
    catalog: Catalog,
    signer: Signer,
    stop: threading.Event,
    renewed: Callable[[], Catalog | None] = lambda: None,
) -> None:
    """Runs until ``stop`` is set. The store and the broker may come and go. ``renewed``: the catalogue to go on
    with, when it has changed; asked before every round."""
    store, duties_store, hedges_store = Store(redis_url), Store(redis_url), Store(redis_url)
    sender = Sender(make_app(broker_url), signer)
    failures: list[Exception] = []

    def do_duties() -> None:
        try:
            run_duties(duties_store, stop)
        except Exception as error:  # noqa: BLE001 - raised below: a scheduler without its duties must not go on
            failures.append(error)
            stop.set()

    duties = threading.Thread(target=do_duties, name="duties", daemon=True)
    duties.start()
    dead = threading.Thread(target=_dead_messages, args=(broker_url, redis_url, catalog, signer, stop), daemon=True)
    if not is_redis(broker_url):
        dead.start()
    watching = threading.Thread(target=_watch_broker, args=(broker_url, redis_url, stop), name="broker", daemon=True)
    watching.start()
    hedges = Hedges(hedges_store)
    loop = Loop(store, sender, catalog, hedges.consider)
    hedging = threading.Thread(target=hedges.run, args=(stop,), name="hedges", daemon=True)
    hedging.start()
    log.info("scheduling %d models on %d deployments", len(catalog.by_model), len(catalog.by_deployment))
    try:
        _schedule(loop, store, stop, renewed)
    finally:
        stop.set()
        hedges.wake()
        duties.join(timeout=2)
        hedging.join(timeout=2)
        watching.join(timeout=2)
        if dead.ident is not None:
            dead.join(timeout=2)
        sender.close()
        store.close()
        duties_store.close()
        hedges_store.close()
    if failures:
        raise failures[0]


def _dead_messages(broker_url: str, redis_url: str, catalog: Catalog, signer: Signer, stop: threading.Event) -> None:
    store = Store(redis_url)
    tiers = [tier for tier in TIERS if catalog.of_tier(tier)]
    DeadMessages(make_app(broker_url), store, tiers, signer.verifier).run(stop)
    store.close()


def _watch_broker(broker_url: str, redis_url: str, stop: threading.Event) -> None:
    store = Store(redis_url)
    BrokerWatch(make_app(broker_url), store).run(stop)
    store.close()


def _schedule(loop: Loop, store: Store, stop: threading.Event, renewed: Callable[[], Catalog | None]) -> None:
    away = False
    while not stop.is_set():
        try:
            moved = 1
            while moved and not stop.is_set():
                if changed := renewed():
                    loop.adopt(changed)
                    log.info("the configuration file has changed: %d models", len(changed.by_model))
                moved = loop.round()
            store.redis.blpop([WAKE], timeout=_LOOK_S)
            if away:
                log.info("the store and the broker are back")
            away = False
        except (Unavailable, RedisError, OSError) as error:
            if not away:
                log.warning("waiting: %s", error if isinstance(error, Unavailable) else "the job store is away")
            away = True
            stop.wait(_AWAY_S)
