"""Messages that no worker can read: the broker's queues are open to whoever can reach the broker.

RabbitMQ moves them to the tier's dead-letter queue. Redis has no such thing: there the newest few are
kept in a list of the store. They may hold anything, so they are never logged.
"""

from __future__ import annotations

from dataclasses import dataclass

from fabric.store.command import Command, call

#: Messages kept, and bytes kept of each. More explain more and cost memory.
KEPT = 100
BYTES_KEPT = 16_384


@dataclass(frozen=True, slots=True)
class BadMessage:
    """``body``: its first bytes, as they came from the broker."""

    reason: str
    body: bytes


def set_aside(reason: str, message: bytes = b"") -> Command[int]:
    """Answers how many there have been. Without ``message`` it is only counted."""
    return call("set_aside", [KEPT, reason, message[:BYTES_KEPT]], int)


def kept() -> Command[list[BadMessage]]:
    """Newest first."""
    return Command(("LRANGE", "fabric:bad-messages", 0, -1), _kept)


def count() -> Command[int]:
    """How many there have been since the store was made."""
    return Command(("GET", "fabric:bad-messages:count"), lambda answer: int(answer or 0))


def _kept(answer: list[bytes]) -> list[BadMessage]:
    messages = []
    for entry in answer:
        reason, _, body = entry.partition(b"\n")
        messages.append(BadMessage(reason.decode(), body))
    return messages
