"""Messages that somebody wrote who reaches the broker: none of them runs anything, and each is kept with its bytes."""

from __future__ import annotations

import base64
import json
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from kombu import Connection
from kombu.message import Message

from fabric.broker import Sender, as_bytes, make_app, queue
from fabric.contracts.catalog import Deployment
from fabric.contracts.job import JobState
from fabric.contracts.message import Chunk
from fabric.contracts.named_keys import parse
from fabric.contracts.secret import Secrets
from fabric.contracts.signed import Signer
from fabric.contracts.zones import WorkerKeys
from fabric.store import bad_messages, transitions
from fabric.store.transitions import Dispatch
from scheduler.dead_messages import DeadMessages

if TYPE_CHECKING:
    from tests.broker.conftest import BROKERS, Fabric, Start
else:
    BROKERS = ("valkey", "rabbitmq")

NOT_OURS = "not signed by a scheduler of this fabric for this queue"
#: Served by nobody: what the scheduler sends there can be taken and looked at.
UNSERVED = "unserved"


@dataclass
class Stage:
    """A worker that serves ``quick`` and ``other``, and no scheduler but the test."""

    fabric: Fabric
    connection: Connection

    @staticmethod
    def place(name: str) -> Deployment:
        return Deployment(name=name, engine="mock", tier="cpu")

    def dispatched(self, name: str) -> tuple[str, Chunk]:
        """A job that the scheduler has dispatched there, and the message that it would send."""
        (job,) = self.fabric.accept(name)
        self.fabric.store(transitions.take([(self.fabric.record(job).spec.lane, 1)]))
        dispatch = Dispatch(job, name, "cpu", b"{}")
        (attempt,) = self.fabric.store(transitions.dispatch([dispatch], claim_within_ms=3_600_000))
        return job, Chunk(deployment=name, jobs=((job, attempt),))

    def sent(self, name: str, chunk: Chunk, signer: Signer) -> Message:
        """What a scheduler with these keys sends to that place, taken out of a queue that nobody serves."""
        to = Deployment(name=f"{UNSERVED}-{name}", engine="mock", tier="cpu")
        sender = Sender(make_app(self.fabric.broker_url), _As(signer, to.queue, self.place(name).queue))
        sender.send([(to, chunk)])
        sender.close()
        found = None
        while found is None:
            found = queue(to)(self.connection.default_channel).get()
        found.ack()
        return found

    def put(self, name: str, body: bytes, headers: dict[str, Any]) -> None:
        queue(self.place(name))(self.connection.default_channel).declare()
        self.connection.Producer(auto_declare=False).publish(
            body,
            exchange="",
            routing_key=self.place(name).queue,
            headers=headers,
            content_type="application/json",
            content_encoding="utf-8",
            correlation_id=str(headers.get("id")),
        )

    def kept(self, after: int) -> bad_messages.BadMessage:
        """The one that is set aside next."""
        self.fabric.until(lambda: self.fabric.store(bad_messages.count()) > after)
        return self.fabric.store(bad_messages.kept())[0]


class _As(Signer):
    """Signs what goes to one queue as if it went to another."""

    __slots__ = ("_into", "_out")

    def __init__(self, signer: Signer, out: str, into: str) -> None:
        super().__init__([key for _, key in parse(signer.dump())])
        self._out, self._into = (b"%d:%b" % (len(name), name.encode()) for name in (out, into))

    def sign(self, content: bytes) -> str:
        assert self._out in content
        return super().sign(content.replace(self._out, self._into, 1))


@pytest.fixture(scope="module", params=BROKERS)
def stage(request: pytest.FixtureRequest, start_fabric: Start) -> Iterator[Stage]:
    broker = request.param
    fabric = start_fabric(broker, {f"{name}-{broker}": {"options": {"latency_ms": 1}} for name in ("quick", "other")})
    fabric.worker()
    # What a scheduler does beside scheduling: a whole one would take the test's jobs.
    dead = DeadMessages(make_app(fabric.broker_url), fabric.store, ["cpu"], fabric.signer.verifier)
    stop = threading.Event()
    emptying = threading.Thread(target=dead.run, args=(stop,))
    if fabric.rabbitmq:
        emptying.start()
    with Connection(fabric.broker_url) as connection:
        yield Stage(fabric, connection)
    stop.set()
    if fabric.rabbitmq:
        emptying.join()
    fabric.close()


@pytest.fixture
def name(stage: Stage) -> Callable[[str], str]:
    return lambda name: f"{name}-{'rabbitmq' if stage.fabric.rabbitmq else 'valkey'}"


def unsigned(body: bytes, headers: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    return body, {name: value for name, value in headers.items() if name != "signature"}


def altered(body: bytes, headers: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    return body.replace(b'"jobs"', b' "jobs"'), headers


def renamed(body: bytes, headers: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    return body, {**headers, "id": "evt_another"}


def cut(body: bytes, headers: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    return body, {**headers, "signature": headers["signature"][:-4]}


def left(body: bytes, headers: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    return body, headers


def what_a_worker_holds() -> Signer:
    """The best that somebody can do with a worker's keys: it takes each for a private one."""
    return Signer([key for _, key in parse(WorkerKeys.of(Secrets(["s" * 32]), ["local"]).dump())])


STRANGER = Signer.of(Secrets.passing())
FORGED = {
    "unsigned": (None, unsigned),
    "altered": (None, altered),
    "renamed": (None, renamed),
    "cut": (None, cut),
    "of another fabric": (STRANGER, left),
    "of a worker that was taken over": (what_a_worker_holds(), left),
}


@pytest.mark.parametrize("how", FORGED)
def test_a_forged_message_runs_nothing_and_is_kept(stage: Stage, name: Callable[[str], str], how: str) -> None:
    signer, change = FORGED[how]
    before = stage.fabric.store(bad_messages.count())
    job, chunk = stage.dispatched(name("quick"))
    message = stage.sent(name("quick"), chunk, signer or stage.fabric.signer)
    headers = {key: value for key, value in message.headers.items() if not key.startswith("x-")}
    body, headers = change(as_bytes(message.body), headers)
    stage.put(name("quick"), body, headers)
    kept = stage.kept(before)
    assert (kept.reason, kept.body, kept.queue) == (NOT_OURS, body, stage.place(name("quick")).queue)
    assert stage.fabric.record(job).state is JobState.DISPATCHED
    assert_goes_on(stage, job, chunk)


def test_a_message_in_another_queue_runs_nothing(stage: Stage, name: Callable[[str], str]) -> None:
    """Word for word what the scheduler has sent, where the same worker reads."""
    before = stage.fabric.store(bad_messages.count())
    job, chunk = stage.dispatched(name("quick"))
    message = stage.sent(name("quick"), chunk, stage.fabric.signer)
    headers = {key: value for key, value in message.headers.items() if not key.startswith("x-")}
    stage.put(name("other"), as_bytes(message.body), headers)
    kept = stage.kept(before)
    assert (kept.reason, kept.queue) == (NOT_OURS, stage.place(name("other")).queue)
    assert stage.fabric.record(job).state is JobState.DISPATCHED
    assert_goes_on(stage, job, chunk)


def test_on_redis_an_envelope_that_names_another_queue_is_none(stage: Stage, name: Callable[[str], str]) -> None:
    """The queue that it lies in counts, not the one that it says."""
    if stage.fabric.rabbitmq:
        pytest.skip("RabbitMQ says itself where a message was")
    before = stage.fabric.store(bad_messages.count())
    job, chunk = stage.dispatched(name("quick"))
    message = stage.sent(name("quick"), chunk, stage.fabric.signer)
    envelope = {
        "body": base64.b64encode(as_bytes(message.body)).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": message.headers,
        "properties": {
            **message.properties,
            "delivery_tag": "tag",
            "body_encoding": "base64",
            "delivery_info": {"exchange": "", "routing_key": stage.place(name("quick")).queue},
        },
    }
    raw = json.dumps(envelope).encode()
    stage.connection.default_channel.client.lpush(stage.place(name("other")).queue, raw)
    kept = stage.kept(before)
    assert (kept.reason, kept.body) == ("not an envelope of Celery's", raw)
    assert stage.fabric.record(job).state is JobState.DISPATCHED
    assert_goes_on(stage, job, chunk)


def test_a_zip_bomb_is_set_aside_packed(stage: Stage, name: Callable[[str], str]) -> None:
    before = stage.fabric.store(bad_messages.count())
    packed = zlib.compress(b"0" * 2_000_000)
    stage.put(name("quick"), packed, {"task": "fabric.run", "compression": "application/x-gzip"})
    kept = stage.kept(before)
    assert (kept.reason, kept.body) == ("unreadable body", packed)
    assert_goes_on(stage, *stage.dispatched(name("quick")))


def assert_goes_on(stage: Stage, job: str, chunk: Chunk) -> None:
    """The scheduler's own message runs it."""
    sender = Sender(make_app(stage.fabric.broker_url), stage.fabric.signer)
    sender.send([(stage.place(chunk.deployment), chunk)])
    sender.close()
    (end,) = stage.fabric.ended([job])
    assert (end.state, end.attempt) == ("succeeded", 1)
    assert all(process.running for process in stage.fabric.processes)
