"""Messages that the scheduler never sent: each of its own once more, and some that nobody can read."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections import deque
from typing import TYPE_CHECKING

import redis
from kombu import Connection, Producer

from fabric.broker import ERRORS, Sender, make_app
from fabric.contracts.catalog import Deployment
from fabric.contracts.errors import Unavailable
from fabric.contracts.message import Chunk
from fabric.contracts.secret import Secrets
from fabric.contracts.signed import Signer
from fabric.store import Store
from storm.stage import SECRET

if TYPE_CHECKING:
    from storm.stage import Stage

DEPLOYMENTS = {
    name: Deployment(name=name, engine="mock", tier=tier)
    for tier, names in {
        "gpu": ("quick-gpu",),
        "cpu": ("quick-cpu", "hosted-cpu"),
        "cloud": ("hosted-cloud", "patient", "patient-batch"),
    }.items()
    for name in names
}
#: The scheduler's own: of what it would have sent, too.
SIGNER = Signer.of(Secrets([SECRET]))
_LOOK_S = 0.05
_KEPT = 300
_GIANT = 8_000_000


class Duplicator:
    """Sends every dispatch that it sees once more: at once, while its job runs, and when it has long ended."""

    def __init__(self, stage: Stage) -> None:
        self._store = Store(stage.valkey.url)
        self._sender = Sender(make_app(stage.broker_url), SIGNER)
        self._seen: deque[tuple[str, str, int]] = deque(maxlen=_KEPT)
        self.sent = 0

    def run(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with contextlib.suppress(Unavailable, *ERRORS):
                fresh = [one for one in self._dispatched() if one not in self._seen]
                self._send(fresh)
                self._seen.extend(fresh)
            time.sleep(_LOOK_S)
        with contextlib.suppress(Unavailable, *ERRORS):
            self._send(list(self._seen))
        self._sender.close()
        self._store.close()

    def _dispatched(self) -> list[tuple[str, str, int]]:
        redis, found = self._store.redis, []
        for name in DEPLOYMENTS:
            for job_id in redis.smembers(f"fabric:busy:{name}"):
                attempt = redis.hget(f"fabric:job:{job_id.decode()}", "attempt")
                if attempt is not None:
                    found.append((name, job_id.decode(), int(attempt)))
        return found

    def _send(self, dispatches: list[tuple[str, str, int]]) -> None:
        for name, job_id, attempt in dispatches:
            self._sender.send([(DEPLOYMENTS[name], Chunk(deployment=name, jobs=((job_id, attempt),)))])
            self.sent += 1


def bad_messages(stage: Stage) -> None:
    """Into every queue: noise, JSON that means nothing, a giant, a foreign task, a job that isn't there."""
    noise = [secrets.token_bytes(200), b"", b"{}", b"[" * 50_000, b"x" * _GIANT]
    with contextlib.suppress(*ERRORS), Connection(stage.broker_url) as connection:
        producer = Producer(connection.default_channel, auto_declare=False)
        for deployment in DEPLOYMENTS.values():
            if stage.rabbitmq is None:
                for body in noise:
                    _push(stage, deployment.queue, body)
            for body in noise:
                producer.publish(
                    body,
                    routing_key=deployment.queue,
                    exchange="",
                    content_type="application/json",
                    content_encoding="utf-8",
                )
            headers = {"task": "os.system", "id": "1", "lang": "py"}
            producer.publish([["true"], {}, {}], routing_key=deployment.queue, exchange="", headers=headers)
    sender = Sender(make_app(stage.broker_url), SIGNER)
    with contextlib.suppress(Unavailable):
        for name, deployment in DEPLOYMENTS.items():
            sender.send([(deployment, Chunk(deployment=name, jobs=(("job_00000000000000000000000000", 1),)))])
    sender.close()


def _push(stage: Stage, queue: str, body: bytes) -> None:
    """Straight into the list that is the queue on Redis, past everything that Celery writes around a message."""
    with redis.Redis(unix_socket_path=str(stage.valkey.socket), db=1) as connection:
        connection.lpush(queue, body)
