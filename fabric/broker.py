"""The Celery app: queues, the one task's name, and the messages from scheduler to worker.

``celery -A fabric.broker inspect|control|flower`` work on it as on any Celery app. Messages are claim
checks (``fabric.contracts.message``): Flower, the broker and its dead letters see ids, never prompts. The scheduler
signs each for the queue that it goes to (``fabric.contracts.signed``); nothing else is read.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from ssl import CERT_REQUIRED
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from amqp.exceptions import AMQPError, MessageNacked
from celery import Celery
from kombu import Connection, Exchange, Producer, Queue, compression
from kombu.exceptions import KombuError
from kombu.message import Message
from kombu.utils.json import dumps
from pydantic import ValidationError
from redis.exceptions import RedisError

from fabric.contracts.catalog import Deployment
from fabric.contracts.errors import Unavailable
from fabric.contracts.ids import new_id
from fabric.contracts.message import TASK, Chunk
from fabric.contracts.sealed import about
from fabric.contracts.signed import Signer, Verifier
from fabric.contracts.tls import distrust

#: Where RabbitMQ puts messages that were rejected or came back too often, one queue per tier.
DEAD_EXCHANGE = Exchange("fabric.dead", type="direct", durable=True)
#: Dead messages kept per tier, the newest, until the scheduler has dealt with them.
DEAD_LIMIT = 10_000
#: A message that kills its reader goes to the dead-letter queue after this many deliveries.
DELIVERY_LIMIT = 5
#: Messages that take longer than this to be claimed come a second time, which the claim's fence refuses.
VISIBILITY_TIMEOUT_S = 300
#: How long the broker may take to answer before it counts as away.
TIMEOUT_S = 4

#: The longest body that is looked at: several times that of the largest chunk.
BODY_LIMIT = 16_384

#: Whose certificate the broker's is signed by.
CA_SETTING = "FABRIC_BROKER_CA, or FABRIC_REDIS_CA where Redis is the broker"
#: What a broker that is away makes of a call.
ERRORS = (KombuError, AMQPError, MessageNacked, RedisError, OSError)


def _refuse(body: bytes) -> bytes:
    raise ValueError("messages aren't compressed here")


# Kombu unpacks a message before anybody can look at it: a kilobyte could fill the memory of whoever receives it.
for _content_type in compression.encoders():
    compression.register(_refuse, _refuse, _content_type)


def dead_queue(tier: str) -> Queue:
    name = f"fabric.{tier}.dead"
    arguments = {"x-queue-type": "quorum", "x-max-length": DEAD_LIMIT}
    return Queue(name, DEAD_EXCHANGE, routing_key=name, queue_arguments=arguments)


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
            "x-dead-letter-routing-key": dead_queue(deployment.tier).name,
            "x-delivery-limit": DELIVERY_LIMIT,
        },
    )


def declare(channel: Any, deployment: Deployment) -> None:
    """Makes the deployment's queue and the dead-letter queue behind it, where they aren't there yet."""
    dead_queue(deployment.tier)(channel).declare()
    queue(deployment)(channel).declare()


def limit_waiting(connection: Connection, seconds: float = TIMEOUT_S) -> None:
    """RabbitMQ may leave a question unanswered for ever; its client would wait as long."""
    sock = _socket(connection)
    if sock is not None:
        sock.settimeout(seconds)


def _socket(connection: Connection) -> socket.socket | None:
    """RabbitMQ's. Redis' connections are many, and have limits of their own."""
    return getattr(connection.connection, "sock", None)


def is_redis(broker_url: str) -> bool:
    return not broker_url.startswith(("amqp", "pyamqp"))


def make_app(broker_url: str, *, tier: str = "") -> Celery:
    """``tier``: of the worker that it is for."""
    broker_url, tls = _tls(broker_url)
    app = Celery("fabric", broker=broker_url, set_as_current=False)
    app.conf.update(
        broker_use_ssl=tls,
        task_serializer="json",
        accept_content=["json"],
        event_serializer="json",
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_acks_late=True,
        # What our own code can't handle is a dead letter; its jobs are reclaimed.
        task_acks_on_failure_or_timeout=False,
        task_create_missing_queues=True,
        task_default_queue="fabric.unrouted",
        task_default_queue_type="classic",
        task_default_exchange="",
        task_default_routing_key="fabric.unrouted",
        worker_prefetch_multiplier=1,
        worker_detect_quorum_queues=True,
        worker_send_task_events=True,
        task_send_sent_event=False,
        worker_hijack_root_logger=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=TIMEOUT_S,
        broker_heartbeat=10,
        broker_transport_options=_transport_options(broker_url, tier),
        # A worker that was cut off comes back while RabbitMQ still believes in its old connection: an exclusive
        # queue of that one would be locked, and end the worker. Not transient: RabbitMQ 4 will have no such queues.
        control_queue_exclusive=False,
        control_queue_durable=True,
        event_queue_expires=60,
        control_queue_expires=60,
    )
    return app


#: Of a URL's query, as redis-py calls them -> as py-amqp does.
_FILES = {"ssl_ca_certs": "ca_certs", "ssl_certfile": "certfile", "ssl_keyfile": "keyfile"}


def _tls(broker_url: str) -> tuple[str, dict[str, Any] | bool]:
    """The URL without names of files, and how TLS is spoken there: with who proves to be who the URL says."""
    parts = urlsplit(broker_url)
    query = parse_qsl(parts.query, keep_blank_values=True)
    files = {name: value for name, value in query if name in _FILES}
    if parts.scheme not in ("rediss", "amqps"):
        return broker_url, False
    url = urlunsplit(parts._replace(query=urlencode([(name, value) for name, value in query if name not in _FILES])))
    if parts.scheme == "rediss":
        return url, {"ssl_cert_reqs": CERT_REQUIRED, "ssl_check_hostname": True, "ssl_ca_certs": None, **files}
    # Without a name, kombu puts the host's in.
    named = {_FILES[name]: value for name, value in files.items()}
    return url, {"cert_reqs": CERT_REQUIRED, "ca_certs": None, "server_hostname": None, **named}


def _transport_options(broker_url: str, tier: str) -> dict[str, Any]:
    if not is_redis(broker_url):
        return {"confirm_publish": True}
    # What a worker has taken and not acknowledged is brought back by whichever worker finds it: of its own tier.
    unacked = f"fabric.unacked.{tier}"
    names = {"unacked_key": unacked, "unacked_index_key": f"{unacked}_index", "unacked_mutex_key": f"{unacked}_mutex"}
    return {
        **(names if tier else {}),
        "visibility_timeout": VISIBILITY_TIMEOUT_S,
        "health_check_interval": 25,
        "socket_connect_timeout": TIMEOUT_S,
        # A server that hangs would keep its clients waiting for ever.
        "socket_timeout": 2 * TIMEOUT_S,
        "socket_keepalive": True,
    }


def reach(connection: Connection, seconds: int = TIMEOUT_S) -> None:
    """Connects, or raises one of ``ERRORS``: the broker is away. From then on nothing waits longer than ``seconds``."""
    connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0, timeout=seconds)
    limit_waiting(connection, seconds)


def hang_up(connection: Connection, seconds: float = TIMEOUT_S) -> None:
    """Without a farewell, which a broken connection would wait for."""
    with suppress(*ERRORS):
        connection.collect(socket_timeout=seconds)


class Sender:
    """Sends chunks to deployments' queues over one connection. Not for use from several threads."""

    def __init__(self, app: Celery, signer: Signer) -> None:
        self._app = app
        self._signer = signer
        self._redis = is_redis(app.conf.broker_url)
        self._connection: Connection | None = None
        self._producer: Producer | None = None
        self._declared: set[str] = set()
        self._origin = f"scheduler@{os.uname().nodename}"

    def connect(self) -> None:
        """Makes sure that there is a connection, before anything is taken that would have to be sent.

        Raises:
            Unavailable: the broker is away.
        """
        try:
            self._hear()
        except ERRORS:
            self._drop()  # it was closed while nothing was sent
        try:
            self._connected()
        except ERRORS as error:
            raise self._broken(error) from error

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
        except ERRORS as error:
            raise self._broken(error) from error

    def close(self) -> None:
        if self._connection is not None:
            with suppress(*ERRORS):
                self._connection.release()
            self._drop()

    def _drop(self) -> None:
        if self._connection is not None:
            connection, self._connection, self._producer = self._connection, None, None
            self._declared.clear()
            hang_up(connection)

    def _connected(self) -> Producer:
        if self._producer is None:
            self._connection = self._app.connection_for_write()
            reach(self._connection)
            self._producer = Producer(self._connection.default_channel, serializer="json", auto_declare=False)
        return self._producer

    def _hear(self) -> None:
        """Takes notice of what RabbitMQ has said since the last message, such as that it closes the connection."""
        sock = None if self._connection is None else _socket(self._connection)
        if sock is not None and select.select([sock], [], [], 0)[0]:
            self._connection.drain_events(timeout=TIMEOUT_S)  # type: ignore[union-attr]  # it has a socket

    def _declare(self, channel: Any, deployment: Deployment) -> None:
        if deployment.queue not in self._declared:
            if not self._redis:  # whose queues are there when something is in them
                declare(channel, deployment)
            self._declared.add(deployment.queue)

    def _broken(self, error: Exception) -> Unavailable:
        self._drop()
        # The broker's own words: never the message's.
        said = distrust(error, CA_SETTING) or getattr(error, "reply_text", "") or type(error).__name__
        return Unavailable(f"The broker doesn't take messages ({said}); it is tried again until it does.")

    def _publish(self, producer: Producer, routing_key: str, chunk: Chunk) -> None:
        task_id = new_id("evt")
        body = dumps([[], {"deployment": chunk.deployment, "jobs": chunk.jobs}, {}]).encode()
        own = {
            "id": task_id,
            "root_id": task_id,
            "kwargsrepr": f"{chunk.deployment}: {_names(chunk)}",
            "origin": self._origin,
        }
        signature = self._signer.sign(_signed(routing_key, own, body))
        producer.publish(
            body,
            content_type="application/json",
            content_encoding="utf-8",
            exchange="",
            routing_key=routing_key,
            correlation_id=task_id,
            delivery_mode=2,
            timeout=TIMEOUT_S,
            confirm_timeout=TIMEOUT_S,
            headers={**_FIXED_HEADERS, **own, _SIGNATURE: signature},
        )


_FIXED_HEADERS: dict[str, Any] = {
    "lang": "py",
    "task": TASK,
    "parent_id": None,
    "group": None,
    "retries": 0,
    "eta": None,
    "expires": None,
    "timelimit": [None, None],
    "argsrepr": "()",
    "ignore_result": True,
}
_OWN_HEADERS = ("id", "root_id", "kwargsrepr", "origin")
_SIGNATURE = "signature"


def _signed(queue_name: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """What a signature is made of: where the message goes, and all of it that isn't fixed."""
    return about("message", queue_name, *(headers[name] for name in _OWN_HEADERS)) + body


class BadMessage(ValueError):
    """A message that isn't one of ours. The text is a fixed phrase: nothing of the message is in it."""


def read(message: Message, queue_name: str, schedulers: Verifier) -> Chunk:
    """What a ``Sender`` of this fabric has sent to that queue. Celery trusts its messages; some of those that it
    doesn't understand end its worker, and come back when it has restarted.

    Raises:
        BadMessage: it isn't. What isn't signed is looked at no further.
    """
    if message.errors:
        raise BadMessage("unreadable body")
    headers = message.headers
    if not isinstance(headers, dict) or headers.get("task") != TASK:
        raise BadMessage("unknown task")
    if any(name not in headers or headers[name] != value for name, value in _FIXED_HEADERS.items()):
        raise BadMessage("unexpected headers")
    if not all(isinstance(headers.get(name), str) for name in _OWN_HEADERS):
        raise BadMessage("unexpected headers")
    body = as_bytes(message.body)
    if len(body) > BODY_LIMIT:
        raise BadMessage("too long")
    if not _is_signed(queue_name, headers, body, schedulers):
        raise BadMessage("not signed by a scheduler of this fabric for this queue")
    try:
        args, kwargs, embedded = message.decode()
    except Exception:  # noqa: BLE001 - foreign bytes fail in any way
        raise BadMessage("unreadable body") from None
    if args or embedded:
        raise BadMessage("unexpected arguments")
    try:
        return Chunk.model_validate(kwargs)
    except ValidationError:
        raise BadMessage("unexpected arguments") from None


def _is_signed(queue_name: str, headers: Mapping[str, Any], body: bytes, schedulers: Verifier) -> bool:
    try:
        signed = _signed(queue_name, headers, body)
    except UnicodeEncodeError:  # JSON can hold what isn't text
        return False
    return schedulers.vouches(signed, headers.get(_SIGNATURE))


def as_bytes(body: Any) -> bytes:
    """A message's body, as it came from whichever broker."""
    return body.encode(errors="replace") if isinstance(body, str) else bytes(body or b"")


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
