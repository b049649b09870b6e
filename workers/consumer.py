"""Celery's consumer, with a check of every message and without delayed delivery.

Celery trusts what comes from its broker. Of the messages that are none of its own it drops some and
logs their content, and some end the worker: they come back when it has restarted, and end it again.
Here each message is read first, and one that isn't ours is set aside.

On quorum queues Celery declares about thirty queues to hold tasks with an ETA. Delays of jobs live in
the backlog, so no task of ours has one. The setting that switches the detection of quorum queues off
doesn't stop that step, and brings back global prefetch, which quorum queues refuse.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from celery.worker.consumer import Consumer as CeleryConsumer
from celery.worker.state import maybe_shutdown
from kombu import Connection
from kombu.message import Message
from redis.exceptions import ResponseError

from fabric.broker import CA_SETTING, BadMessage, as_bytes, declare, limit_waiting, read
from fabric.contracts.catalog import Deployment
from fabric.contracts.signed import Verifier
from fabric.contracts.tls import distrust
from workers.redis_transport import guarded

log = logging.getLogger(__name__)

#: Seconds between two tries to reach the broker: the first, what each adds, and the most.
_PATIENCE: dict[str, Any] = {"interval_start": 0.1, "interval_step": 0.2, "interval_max": 1.0}

#: RabbitMQ 3.10 brings a quorum queue back like this if it was killed within a second of making it.
_DEAF = (
    "RabbitMQ doesn't answer about a queue of these: %s. If that goes on, delete the queue (rabbitmqctl "
    "delete_queue); it is made anew, and no job is lost."
)
#: Takes the reason, the message, and the queue that it came from.
SetAside = Callable[[str, bytes, str], None]


class Consumer(CeleryConsumer):
    """``redis`` says whether the broker is one. RabbitMQ has dead-letter queues, and the scheduler empties them.
    ``schedulers``: whose messages are taken."""

    def __init__(
        self,
        *args: Any,
        deployments: Sequence[Deployment],
        schedulers: Verifier,
        set_aside: SetAside,
        redis: bool,
        **kwargs: Any,
    ) -> None:
        self._deployments = deployments
        self._schedulers = schedulers
        self._set_aside = set_aside
        self._redis = redis
        super().__init__(*args, **kwargs)
        if redis:
            # A server that has no memory or no disk left refuses to note who has a message. Celery takes that for the
            # end of its worker; it is an outage, and the job of a message that was lost so is dispatched again.
            known = self.conninfo.connection_errors  # type: ignore[attr-defined]  # not in the stubs
            self.connection_errors: tuple[type[Exception], ...] = (*known, ResponseError)

    class Blueprint(CeleryConsumer.Blueprint):  # type: ignore[valid-type, misc]  # the stubs call it a variable
        default_steps = tuple(
            step for step in CeleryConsumer.Blueprint.default_steps if not str(step).endswith("DelayedDelivery")
        )

    def connection_for_read(self, heartbeat: float | None = None) -> Connection:
        connection = self.app.connection_for_read(heartbeat=heartbeat)
        if self._redis:
            transport = guarded(self._lay_down)
            # Not ``transport_cls``: Celery's ``inspect stats`` sends that around as JSON.
            connection.get_transport_cls = lambda: transport  # type: ignore[method-assign]
        return self.ensure_connected(connection)

    def ensure_connected(self, conn: Connection) -> Connection:
        """As Celery's own, but never more than a second late when the broker is back, and with one line about it."""
        tries = 0

        def waiting(error: Exception, interval: float) -> None:
            nonlocal tries
            tries += 1
            if tries == 2:  # the first is often only a restart
                log.warning("waiting for the broker: %s", distrust(error, CA_SETTING) or type(error).__name__)

        conn.ensure_connection(waiting, callback=maybe_shutdown, **_PATIENCE)
        if tries > 1:
            log.info("the broker is back")
        return conn

    def connect(self) -> Connection:
        connection = super().connect()
        if not self._redis:
            limit_waiting(connection)
            for deployment in self._deployments:
                declare(connection.default_channel, deployment)
        return connection

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        if isinstance(exc, TimeoutError) and not self._redis:
            log.error(_DEAF, ", ".join(deployment.queue for deployment in self._deployments))
        super().on_connection_error_after_connected(exc)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Message], Any]:
        handle = super().create_task_handler(*args, **kwargs)

        def on_message(message: Message) -> Any:
            try:
                read(message, _queue(message), self._schedulers)
            except BadMessage as error:
                return self._reject(message, str(error))
            return handle(message)

        return on_message

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        self._reject(message, "unreadable body")

    def _reject(self, message: Message, reason: str) -> None:
        # RabbitMQ puts what is rejected into the dead-letter queue, Redis throws it away.
        if self._redis:
            self._lay_down(reason, as_bytes(message.body), _queue(message))
        else:
            log.error("a message was set aside: %s", reason)
        message.reject_log_error(log, self.connection_errors)

    def _lay_down(self, reason: str, body: bytes, queue: str) -> None:
        log.error("a message was set aside: %s", reason)
        self._set_aside(reason, body, queue)


def _queue(message: Message) -> str:
    """Where it was taken from: ``redis_transport`` makes sure of it on Redis, RabbitMQ itself elsewhere."""
    return str((message.delivery_info or {}).get("routing_key", ""))
