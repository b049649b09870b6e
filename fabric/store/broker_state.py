"""Whether the broker takes messages, as the schedulers find: the door has no way to it, and needs none.

Each scheduler says what it finds, for a moment. One of them that gets through is enough: work goes on then. Where
nobody says anything (no scheduler runs) the broker isn't known to be away.
"""

from __future__ import annotations

from fabric.contracts.errors import Unavailable
from fabric.store.command import Command

_WORKS, _AWAY = "fabric:broker:works", "fabric:broker:away"
#: How long a word counts. That it works: shorter shuts the door sooner. That it is away: longer than a look takes.
_WORKS_MS, _AWAY_MS = 1_500, 10_000


def works() -> Command[None]:
    return Command(("SET", _WORKS, "1", "PX", _WORKS_MS), lambda answer: None)


def away() -> Command[None]:
    return Command(("SET", _AWAY, "1", "PX", _AWAY_MS), lambda answer: None)


def is_away() -> Command[bool]:
    """At least one scheduler doesn't get through, and none does."""
    return Command(("MGET", _WORKS, _AWAY), lambda answer: answer[0] is None and answer[1] is not None)


def refusal() -> Unavailable:
    return Unavailable(
        "The broker is away. What is in waits for it; new work is taken again when it is back.", retry_after_s=1
    )
