"""Standing duties: each is one transition that mends what a crash or the clock left behind.

All are atomic and idempotent, so every scheduler process runs them and none has to lead.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from fabric.contracts.errors import Unavailable
from fabric.store import Store, transitions

log = logging.getLogger(__name__)

#: A worker whose heartbeat is older than this is dead. Shorter rescues sooner and mistakes a busy
#: machine for a dead one; heartbeats come every second.
DEAD_AFTER_MS = 5_000
#: Deaths of a worker under the same job that park it.
POISON_DEATHS = 3
_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Duty:
    """``run`` answers a sentence worth logging, or nothing."""

    name: str
    run: Callable[[Store], str | None]


def _rescue(store: Store) -> str | None:
    sent_back, parked = store(transitions.rescue(dead_after_ms=DEAD_AFTER_MS, deaths=POISON_DEATHS))
    if sent_back or parked:
        return f"rescued {sent_back} jobs of dead workers, parked {parked}"
    return None


def _reclaim(store: Store) -> str | None:
    dispatched, taken = store(transitions.reclaim())
    if dispatched or taken:
        return f"took back {dispatched} unclaimed dispatches and {taken} jobs of a dead scheduler"
    return None


def _promote(store: Store) -> str | None:
    store(transitions.promote())
    return None


def _expire(store: Store) -> str | None:
    expired = store(transitions.expire())
    return f"{expired} jobs passed their deadline" if expired else None


DUTIES = (Duty("rescue", _rescue), Duty("reclaim", _reclaim), Duty("promote", _promote), Duty("expire", _expire))


def run_duties(store: Store, stop: threading.Event) -> None:
    """Runs every duty again and again until ``stop`` is set; a store that is away is waited for."""
    while not stop.wait(_EVERY_S):
        for duty in DUTIES:
            try:
                said = duty.run(store)
            except Unavailable:
                break
            if said:
                log.warning("%s: %s", duty.name, said)
