"""Messages that no worker can read: the broker's queues are open to whoever can reach the broker.

The newest few are kept here, whatever the broker: a worker takes them out of Redis' queues, the scheduler out
of RabbitMQ's dead-letter queues. They may hold anything, so they are never logged.
"""

from __future__ import annotations

from dataclasses import dataclass

from fabric.store.command import Command, call

#: Messages kept, and bytes kept of each. More explain more and cost memory.
KEPT = 100
BYTES_KEPT = 16_384


@dataclass(frozen=True, slots=True)
class BadMessage:
    """``body``: its first bytes, as they came from the broker. ``queue``: ``""`` where that isn't known.
    ``at_ms``: milliseconds since the epoch on the store's clock."""

    reason: str
    body: bytes
    queue: str
    at_ms: int


def set_aside(reason: str, message: bytes, queue: str = "") -> Command[int]:
    """Answers how many there have been."""
    return call("set_aside", [KEPT, reason, queue.replace("\n", " "), message[:BYTES_KEPT]], int)


def kept() -> Command[list[BadMessage]]:
    """Newest first."""
    return Command(("LRANGE", "fabric:bad-messages", 0, -1), _kept)


def kept_count() -> Command[int]:
    return Command(("LLEN", "fabric:bad-messages"), int)


def count() -> Command[int]:
    """How many there have been since the store was made."""
    return Command(("GET", "fabric:bad-messages:count"), lambda answer: int(answer or 0))


def _kept(answer: list[bytes]) -> list[BadMessage]:
    messages = []
    for entry in answer:
        at, reason, queue, body = entry.split(b"\n", 3)
        messages.append(BadMessage(reason.decode(), body, queue.decode(), int(at)))
    return messages
