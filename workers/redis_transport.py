"""Celery's Redis transport, with two holes closed through which a worker falls.

- A queue on Redis is a list that anyone who reaches the server can push to. What isn't an envelope of
  Celery's ends the worker, or its connection, before the message inside can be looked at.
- When the server dies, kombu tears the connection down and then wants to give messages back over it.
  The error that this ends in isn't one that Celery takes for a lost connection: the worker ends, too.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import redis
from kombu.transport.redis import Channel, Transport
from kombu.utils.json import loads

OnBad = Callable[[str, bytes, str], None]


def guarded(on_bad: OnBad) -> type[Transport]:
    """The transport. ``on_bad`` gets a reason, the bytes of what isn't an envelope, and its queue."""

    class Client(redis.Redis):
        def parse_response(self, connection: Any, command_name: Any, **options: Any) -> Any:
            answer = super().parse_response(connection, command_name, **options)  # type: ignore[no-untyped-call]
            if command_name == "BRPOP" and answer and not is_envelope(answer[1], answer[0]):
                on_bad("not an envelope of Celery's", answer[1], answer[0].decode(errors="replace"))
                return None  # as when the wait was over without a message
            return answer

    class GuardedChannel(Channel):
        def _get_client(self) -> type[redis.Redis]:
            return Client

        def _create_client(self, asynchronous: bool = False) -> Any:
            # Kombu makes a client for every message that it sends, reads or acknowledges. What it needs of it
            # is the pool behind, so one client a pool does.
            if asynchronous:
                return super()._create_client(asynchronous)  # type: ignore[misc]  # not in the stubs
            pool, client = getattr(self, "_kept", (None, None))
            if client is None or pool is not self.pool:
                client = super()._create_client()  # type: ignore[misc]  # not in the stubs
                self._kept = (self.pool, client)
            return client

        def _connparams(self, *args: Any, **options: Any) -> Any:
            if self.connection.client is None:
                raise redis.ConnectionError("The connection to the broker is closed.")
            return super()._connparams(*args, **options)  # type: ignore[misc]  # not in the stubs

    class GuardedTransport(Transport):
        Channel = GuardedChannel

    return GuardedTransport


def is_envelope(item: bytes, queue: bytes) -> bool:
    """Whether Celery's transport can make a message of it, one that says itself that it belongs to this queue."""
    try:
        envelope = loads(item.decode())
        properties = envelope["properties"]
        delivery = properties["delivery_info"]
        base64.b64decode(envelope["body"])
        return (
            properties["body_encoding"] == "base64"
            and isinstance(envelope["body"], str)
            and isinstance(envelope["headers"], dict)
            and isinstance(properties["delivery_tag"], str)
            and isinstance(delivery["exchange"], str)
            and delivery["routing_key"] == queue.decode()
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False
