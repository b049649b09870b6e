"""What breaks when: a pure function of the seed."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Transport = Literal["valkey", "rabbitmq"]

#: Two of each tier: what one that dies was doing is to run elsewhere, not when it has started again.
WORKERS = tuple(f"worker-{tier}-{number}" for tier in ("gpu", "cpu", "cloud") for number in (1, 2))
SCHEDULERS = ("scheduler-1", "scheduler-2")
KILLED = ("api", "recorder", *SCHEDULERS, *WORKERS)
#: Links to the job store, to RabbitMQ, from workers to their engines, to who is told of ends, from clients to the door.
STORE_LINKS = tuple(f"{name}-store" for name in KILLED)
BROKER_LINKS = tuple(f"{name}-broker" for name in (*SCHEDULERS, *WORKERS))
OTHER_LINKS = (
    "worker-cloud-engine",
    "worker-cpu-engine",
    "worker-cloud-provider",
    "recorder-receiver",
    "clients-api",
)


@dataclass(frozen=True, slots=True)
class Kind:
    """``seconds``: how long it lasts, least and most. ``targets``: what it can hit."""

    seconds: tuple[float, float]
    targets: tuple[str, ...]
    transports: tuple[Transport, ...] = ("valkey", "rabbitmq")


#: What makes a process' clock wrong.
FAKETIME = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
_STORE = ("valkey",)
_BROKERS = ("rabbitmq",)
_LINKS = (*STORE_LINKS, *OTHER_LINKS)
KINDS: dict[str, Kind] = {
    "kill-worker": Kind((0, 0), WORKERS),
    "kill-process": Kind((0, 0), ("api", "recorder", *SCHEDULERS)),
    "kill-store": Kind((0.2, 3), _STORE),
    "kill-broker": Kind((0.2, 3), _BROKERS, ("rabbitmq",)),
    "freeze-store": Kind((3, 20), _STORE),
    "freeze-broker": Kind((3, 20), _BROKERS, ("rabbitmq",)),
    "freeze-process": Kind((3, 20), KILLED),
    "cut": Kind((1, 10), _LINKS),
    "cut-broker": Kind((1, 10), BROKER_LINKS, ("rabbitmq",)),
    "delay": Kind((3, 10), _LINKS),
    "black-hole": Kind((1, 60), _LINKS),
    "black-hole-broker": Kind((1, 60), BROKER_LINKS, ("rabbitmq",)),
    "no-memory": Kind((2, 6), _STORE),
    "disk-full": Kind((2, 6), ("data",)),
    "duplicates": Kind((4, 10), ("queues",)),
    "bad-messages": Kind((0, 0), ("queues",)),
    "bad-requests": Kind((0, 0), ("api",)),
    "engine-crash": Kind((0.5, 4), ("cloud", "home")),
    "clock-jump": Kind((3, 8), ("+3600", "-3600")),
}
#: Rest after a fault of the first round, so that what follows is its doing alone.
_REST_S = 9.0
_PAUSE_S = (1.0, 5.0)
#: Kinds of which one in the first round says little: every process is killed once.
_OFTEN = {"kill-worker": len(WORKERS), "kill-process": len(KILLED) - len(WORKERS)}
#: Of the later rounds, the part that breaks while something else is broken.
_TOGETHER = 0.35


@dataclass(frozen=True, slots=True)
class Fault:
    """``at_s``: seconds since the load began. ``alone``: nothing else breaks while it lasts or right afterwards."""

    at_s: float
    kind: str
    target: str
    for_s: float
    alone: bool

    def __str__(self) -> str:
        return f"{self.at_s:7.1f} s  {self.kind} of {self.target}" + (f" for {self.for_s:g} s" if self.for_s else "")


def make(
    seed: int, seconds: float, transport: Transport, *, without: Iterable[str] = (), only: Iterable[str] = ()
) -> tuple[Fault, ...]:
    """Every kind once alone, in random order, then again and again, some of them together. What a kind can hit is hit
    in turns: nothing twice before all else once. What wouldn't be over within ``seconds`` is left out."""
    dice = random.Random(f"{seed} {transport}")
    left_out, wanted = set(without), set(only)
    names = [
        name
        for name, kind in KINDS.items()
        if transport in kind.transports and name not in left_out and (not wanted or name in wanted)
    ]
    faults: list[Fault] = []
    turns: dict[str, list[str]] = {}
    at_s, alone = 2.0, True
    while names and at_s < seconds:
        times = [_OFTEN.get(name, 1) if alone else 1 for name in names]
        for name in dice.sample(names, sum(times), counts=times):
            kind = KINDS[name]
            for_s = round(dice.uniform(*kind.seconds), 1)
            if not turns.get(name):
                turns[name] = dice.sample(kind.targets, len(kind.targets))
            target = turns[name].pop()
            if round(at_s, 1) + for_s > seconds:
                return tuple(faults)
            faults.append(Fault(round(at_s, 1), name, target, for_s, alone))
            if alone:
                at_s += for_s + _REST_S
            elif dice.random() < _TOGETHER:
                at_s += dice.uniform(0.2, 1.0)
            else:
                at_s += for_s + dice.uniform(*_PAUSE_S)
        alone = False
    return tuple(faults)


def impossible() -> dict[str, str]:
    """Kinds that this machine can't have, and why."""
    reasons = {}
    if os.geteuid() != 0:
        reasons["disk-full"] = "only root can mount a small tmpfs"
    if not FAKETIME:
        reasons["clock-jump"] = "libfaketime isn't installed: apt-get install faketime"
    return reasons


def counts(faults: Iterable[Fault]) -> dict[str, int]:
    return dict(sorted(Counter(fault.kind for fault in faults).items()))
