"""RabbitMQ's dead-letter queues, one per tier: messages that were rejected, or came back too often.

What a scheduler has signed names jobs, which go back to the backlog unless they already have. What nobody here sent is
kept in the store for people to look at. Redis has no such queues: there a worker does this for its own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from celery import Celery
from kombu import Connection
from kombu.message import Message

from fabric.broker import ERRORS, BadMessage, as_bytes, dead_queue, limit_waiting, read
from fabric.contracts.errors import Unavailable, where
from fabric.contracts.signed import Verifier
from fabric.store import Store, bad_messages, transitions

log = logging.getLogger(__name__)

_EVERY_S = 1.0
#: Messages of one queue that are looked at before the others get their turn.
_AT_MOST = 200
_ACCEPTED = {"application/json"}


class DeadMessages:
    """Empties the dead-letter queues of these tiers. One thread, one connection."""

    def __init__(self, app: Celery, store: Store, tiers: Sequence[str], schedulers: Verifier) -> None:
        self._app = app
        self._schedulers = schedulers
        self._store = store
        self._tiers = tiers
        self._connection: Connection | None = None

    def run(self, stop: threading.Event) -> None:
        """Until ``stop`` is set. The broker and the store may come and go; what wasn't handled stays."""
        while not stop.wait(_EVERY_S):
            try:
                while self.drain() and not stop.is_set():
                    pass
            except (Unavailable, *ERRORS):
                self.close()
            except Exception as error:  # noqa: BLE001 - what is in these queues may be anything
                log.error("the dead-letter queues can't be read: %s%s", type(error).__name__, where(error))
                self.close()
        self.close()

    def drain(self) -> int:
        """One turn through all queues; answers how many messages left them.

        Raises:
            Unavailable: the store is away. A message leaves its queue only when it has been dealt with.
        """
        channel = self._connected().default_channel
        return sum(self._empty(channel, tier) for tier in self._tiers)

    def close(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            with suppress(*ERRORS):
                connection.release()

    def _empty(self, channel: Any, tier: str) -> int:
        queue = dead_queue(tier)(channel)
        queue.declare()
        handled = 0
        # Not ``queue.get``, which raises where a message can't be unpacked: that one would stay for ever.
        while handled < _AT_MOST and (raw := channel.basic_get(queue.name)) is not None:
            message = channel.message_to_python(raw)
            message.accept = _ACCEPTED
            self._handle(message)
            message.ack()
            handled += 1
        return handled

    def _handle(self, message: Message) -> None:
        try:
            chunk = read(message, _origin(message), self._schedulers)
        except BadMessage as error:
            self._store(bad_messages.set_aside(str(error), as_bytes(message.body), _origin(message)))
            return
        returned = self._store(transitions.undelivered(chunk.jobs))
        log.warning("the broker gave up a message of %d jobs; %d of them go back", len(chunk.jobs), returned)

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = self._app.connection_for_read()
            self._connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)
            limit_waiting(self._connection)
        return self._connection


def _origin(message: Message) -> str:
    """The queue that it came from, as the broker says."""
    deaths: Any = message.headers.get("x-death") if isinstance(message.headers, dict) else None
    first: Any = deaths[0] if isinstance(deaths, list) and deaths else None
    queue: Any = first.get("queue") if isinstance(first, dict) else None
    return queue if isinstance(queue, str) else ""
