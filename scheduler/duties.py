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


#: What one transition handles at most, so that none holds up the store for long.
_AT_MOST = 500


@dataclass(frozen=True, slots=True)
class Done:
    """``said``: a sentence worth logging, or nothing. ``more``: there may be more to do at once."""

    said: str = ""
    more: bool = False


@dataclass(frozen=True, slots=True)
class Duty:
    name: str
    run: Callable[[Store], Done]


def _rescue(store: Store) -> Done:
    command = transitions.rescue(dead_after_ms=DEAD_AFTER_MS, deaths=POISON_DEATHS, at_most=_AT_MOST)
    sent_back, parked = store(command)
    if not sent_back and not parked:
        return Done()
    return Done(f"rescued {sent_back} jobs of dead workers, parked {parked}", sent_back + parked >= _AT_MOST)


def _reclaim(store: Store) -> Done:
    dispatched, taken = store(transitions.reclaim(at_most=_AT_MOST))
    if not dispatched and not taken:
        return Done()
    said = f"took back {dispatched} unclaimed dispatches and {taken} jobs of a dead scheduler"
    return Done(said, max(dispatched, taken) >= _AT_MOST)


def _promote(store: Store) -> Done:
    return Done(more=store(transitions.promote(at_most=_AT_MOST)) >= _AT_MOST)


def _expire(store: Store) -> Done:
    expired = store(transitions.expire(at_most=_AT_MOST))
    return Done(f"{expired} jobs passed their deadline" if expired else "", expired >= _AT_MOST)


DUTIES = (Duty("rescue", _rescue), Duty("reclaim", _reclaim), Duty("promote", _promote), Duty("expire", _expire))


def run_duties(store: Store, stop: threading.Event) -> None:
    """Runs every duty again and again until ``stop`` is set; a store that is away is waited for."""
    while not stop.wait(_EVERY_S):
        try:
            for duty in DUTIES:
                perform(duty, store, stop)
        except Unavailable:
            continue


def perform(duty: Duty, store: Store, stop: threading.Event) -> None:
    """Until there is nothing left to do.

    Raises:
        Unavailable: the store is away.
    """
    while not stop.is_set():
        done = duty.run(store)
        if done.said:
            log.warning("%s: %s", duty.name, done.said)
        if not done.more:
            return
