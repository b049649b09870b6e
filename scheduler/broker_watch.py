"""Looks again and again whether the broker answers, and says so in the store: the door takes no work without it."""

from __future__ import annotations

import logging
import threading
from typing import Any

from celery import Celery
from kombu import Connection

from fabric.broker import ERRORS, hang_up, is_redis, reach
from fabric.contracts.errors import Unavailable, where
from fabric.store import Store, broker_state

log = logging.getLogger(__name__)

_EVERY_S = 0.5
#: How long the broker may take to answer. Longer: fewer busy ones are taken for dead; a frozen one is told of later.
PATIENCE_S = 2


class BrokerWatch:
    """One thread, one connection."""

    def __init__(self, app: Celery, store: Store) -> None:
        self._app = app
        self._store = store
        self._redis = is_redis(app.conf.broker_url)
        self._connection: Connection | None = None

    def run(self, stop: threading.Event) -> None:
        """Until ``stop`` is set. The broker and the store may come and go."""
        while not stop.wait(_EVERY_S):
            try:
                self._store(broker_state.works() if self.look() else broker_state.away())
            except Unavailable:
                continue  # then the door is shut for that
            except Exception as error:  # noqa: BLE001 - a door that is shut for no reason is worse than one that isn't told
                log.error("the broker can't be watched: %s%s", type(error).__name__, where(error))
                self.close()
        self.close()

    def look(self) -> bool:
        """Whether the broker answers now."""
        try:
            self._ask(self._connected())
        except ERRORS:
            self.close()
            return False
        return True

    def close(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            hang_up(connection, PATIENCE_S)

    def _ask(self, connection: Connection) -> None:
        """A question that changes nothing."""
        channel: Any = connection.default_channel if self._redis else connection.channel()
        if self._redis:
            channel.client.ping()
        else:
            channel.close()

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = self._app.connection_for_write(connect_timeout=PATIENCE_S)
            reach(self._connection, PATIENCE_S)
        return self._connection
