"""The Celery app: queues, the one task's name, and how the scheduler sends it.

``celery -A fabric.broker inspect|control|flower`` work on it as on any Celery app. Messages are claim
checks (``fabric.contracts.message``): Flower, the broker and its dead letters see ids, never prompts.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from amqp.exceptions import AMQPError
from celery import Celery
from kombu import Connection, Exchange, Producer, Queue
from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from fabric.contracts.catalog import Deployment
from fabric.contracts.errors import Unavailable
from fabric.contracts.ids import new_id
from fabric.contracts.message import TASK, Chunk

#: Where RabbitMQ puts messages that were rejected or came back too often, one queue per tier.
DEAD_EXCHANGE = Exchange("fabric.dead", type="direct", durable=True)
#: A message that kills its reader goes to the dead-letter queue after this many deliveries.
DELIVERY_LIMIT = 5
#: Messages that take longer than this to be claimed come a second time, which the claim's fence refuses.
VISIBILITY_TIMEOUT_S = 300


def dead_queue(tier: str) -> Queue:
    name = f"fabric.{tier}.dead"
    return Queue(name, DEAD_EXCHANGE, routing_key=name, queue_arguments={"x-queue-type": "quorum"})


def queue(deployment: Deployment) -> Queue:
    """The deployment's queue. The arguments are RabbitMQ's; Redis ignores them."""
    return Queue(
        deployment.queue,
        # The default exchange: a message's routing key is its queue's name, no binding to look up.
        Exchange("", type="direct"),
        routing_key=deployment.queue,
        queue_arguments={
            "x-queue-type": "quorum",
            "x-dead-letter-exchange": DEAD_EXCHANGE.name,
            "x-dead-letter-routing-key": f"fabric.{deployment.tier}.dead",
            "x-delivery-limit": DELIVERY_LIMIT,
        },
    )


def make_app(broker_url: str) -> Celery:
    app = Celery("fabric", broker=broker_url, set_as_current=False)
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        event_serializer="json",
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_acks_late=True,
        task_create_missing_queues=True,
        task_default_queue="fabric.unrouted",
        task_default_queue_type="classic",
        task_default_exchange="",
        task_default_routing_key="fabric.unrouted",
        worker_prefetch_multiplier=1,
        worker_detect_quorum_queues=True,
        worker_consumer="workers.consumer:Consumer",
        worker_send_task_events=True,
        task_send_sent_event=False,
        worker_hijack_root_logger=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=4,
        broker_heartbeat=10,
        broker_transport_options=_transport_options(broker_url),
        event_queue_expires=60,
        control_queue_expires=60,
    )
    return app


def _transport_options(broker_url: str) -> dict[str, Any]:
    if broker_url.startswith(("amqp", "pyamqp")):
        return {"confirm_publish": True}
    return {
        "visibility_timeout": VISIBILITY_TIMEOUT_S,
        "health_check_interval": 25,
        "socket_connect_timeout": 4,
        "socket_keepalive": True,
    }


class Sender:
    """Sends chunks to deployments' queues over one connection. Not for use from several threads."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._connection: Connection | None = None
        self._producer: Producer | None = None
        self._declared: set[str] = set()
        self._origin = f"scheduler@{os.uname().nodename}"

    def send(self, chunks: Iterable[tuple[Deployment, Chunk]]) -> None:
        """
        Raises:
            Unavailable: the broker didn't take a message; those before it were taken.
        """
        try:
            producer = self._connected()
            for deployment, chunk in chunks:
                self._declare(producer.channel, deployment)
                self._publish(producer, deployment.queue, chunk)
        except (KombuError, AMQPError, RedisError, OSError) as error:
            self.close()
            raise Unavailable("The broker can't be reached; it is tried again until it is back.") from error

    def close(self) -> None:
        if self._connection is not None:
            connection, self._connection, self._producer = self._connection, None, None
            self._declared.clear()
            # A broken connection may fail in any way when it is closed.
            with suppress(Exception):
                connection.release()

    def _connected(self) -> Producer:
        if self._producer is None:
            self._connection = self._app.connection_for_write()
            self._connection.ensure_connection(max_retries=1, timeout=4)
            self._producer = Producer(self._connection.default_channel, serializer="json", auto_declare=False)
        return self._producer

    def _declare(self, channel: Any, deployment: Deployment) -> None:
        if deployment.queue not in self._declared:
            dead_queue(deployment.tier)(channel).declare()
            queue(deployment)(channel).declare()
            self._declared.add(deployment.queue)

    def _publish(self, producer: Producer, routing_key: str, chunk: Chunk) -> None:
        task_id = new_id("evt")
        producer.publish(
            [[], {"deployment": chunk.deployment, "jobs": chunk.jobs}, {}],
            exchange="",
            routing_key=routing_key,
            correlation_id=task_id,
            delivery_mode=2,
            headers={
                "lang": "py",
                "task": TASK,
                "id": task_id,
                "root_id": task_id,
                "parent_id": None,
                "group": None,
                "retries": 0,
                "eta": None,
                "expires": None,
                "timelimit": [None, None],
                "argsrepr": "()",
                "kwargsrepr": f"{chunk.deployment}: {_names(chunk)}",
                "origin": self._origin,
                "ignore_result": True,
            },
        )


def _names(chunk: Chunk) -> str:
    """What Flower shows of a chunk: the first job ids with their attempt numbers."""
    shown = ", ".join(f"{job_id}#{attempt}" for job_id, attempt in chunk.jobs[:4])
    return shown if len(chunk.jobs) <= 4 else f"{shown} and {len(chunk.jobs) - 4} more"


def __getattr__(name: str) -> Any:
    """``app`` is made when it is first asked for, from ``FABRIC_*`` and ``fabric.yaml``."""
    if name in ("app", "celery"):
        from fabric import settings

        app = make_app(settings.load().broker_url)
        globals()["app"] = globals()["celery"] = app
        return app
    raise AttributeError(name)
