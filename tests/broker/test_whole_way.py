"""From the store through scheduler, broker and worker, and back: real processes on each broker."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import redis
from amqp.exceptions import AMQPError
from kombu import Connection

from fabric.broker import Sender, make_app
from fabric.contracts.catalog import Deployment
from fabric.contracts.job import JobState
from fabric.contracts.message import Chunk
from fabric.contracts.worker import WorkerInfo
from fabric.store import bad_messages, transitions

if TYPE_CHECKING:
    from tests.broker.conftest import Fabric, Process, Start

CANARY = "the canary sings at midnight"
FOREVER_MS = 600_000


class Running:
    """A fabric with one scheduler and one worker, for tests that leave it as they found it."""

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self.scheduler = fabric.scheduler()
        self.worker: Process = fabric.worker()

    def waiting(self, queue: str) -> list[str]:
        """Messages that no worker has got yet, each with all that the broker knows of it."""
        if self.fabric.rabbitmq is None:
            return [item.decode() for item in self.redis.lrange(queue, 0, -1)]
        got = []
        # A queue that isn't made yet, or is just being made, is an error to RabbitMQ.
        with Connection(self.fabric.broker_url) as connection, suppress(AMQPError):
            channel = connection.default_channel
            while message := channel.basic_get(queue, no_ack=False):
                got.append(f"{message.body!r} {message.properties} {message.headers}")
        return got  # with the channel closed they go back

    def unacknowledged(self, queue: str) -> int:
        if self.fabric.rabbitmq is None:
            return int(self.redis.hlen("fabric.unacked.cpu"))
        rows = self.fabric.rabbitmq.ctl("list_queues", "name", "messages_unacknowledged")
        return next(int(count) for name, count in rows if name == queue)

    @property
    def redis(self) -> Any:
        return redis.Redis(unix_socket_path=str(self.fabric.valkey.socket), db=1)


@pytest.fixture(scope="module", params=["valkey", "rabbitmq"])
def running(request: pytest.FixtureRequest, start_fabric: Start) -> Iterator[Running]:
    deployments = {
        f"{name}-{request.param}": values
        for name, values in {
            "quick": {"options": {"latency_ms": 1}},
            "stuck": {"options": {"latency_ms": FOREVER_MS}},
            "frail": {"options": {"fail": 0.5}, "breaker": {"failures": 1000, "minimum": 1000}},
            "broken": {"options": {"fail": 1}},
            "nobody": {"tier": "gpu"},
        }.items()
    }
    fabric = start_fabric(request.param, deployments, FABRIC_DRAIN_S="0.5")
    running = Running(fabric)
    yield running
    fabric.close()


@pytest.fixture
def fabric(running: Running) -> Fabric:
    return running.fabric


@pytest.fixture
def model(request: pytest.FixtureRequest, running: Running) -> Any:
    """``model("quick")`` is the name on this broker."""
    broker = "rabbitmq" if running.fabric.rabbitmq else "valkey"
    return lambda name: f"{name}-{broker}"


def test_a_job_runs_and_its_record_says_where(fabric: Fabric, model: Any) -> None:
    (job,) = fabric.accept(model("quick"))
    (end,) = fabric.ended([job])
    assert (end.state, end.attempt, end.deployment, end.tier) == ("succeeded", 1, model("quick"), "cpu")
    record = fabric.record(job)
    assert json.loads(fabric.opened(record))["choices"][0]["message"]["content"].startswith("tok tok")
    assert record.decision is not None
    assert record.decision["plan"][0]["deployment"] == model("quick")


def test_many_jobs_of_all_classes_each_end_once(fabric: Fabric, model: Any) -> None:
    jobs = fabric.lines(model("quick"), 600)
    jobs += fabric.accept(model("quick"), 40)
    jobs += fabric.accept(model("quick"), 40, priority="interactive", tenant="other")
    assert {end.state for end in fabric.ended(jobs)} == {"succeeded"}


def test_the_broker_never_sees_a_prompt(running: Running, fabric: Fabric, model: Any) -> None:
    # A worker that only says that it is there: what it is sent stays in the broker.
    name = model("nobody")
    info = WorkerInfo("nobody", "gpu", "host", 1, 0, {name: 8}, {name: 16}, {})
    fabric.store(transitions.heartbeat(info, []))
    jobs = fabric.accept(name, 16, content=CANARY)
    seen: list[str] = []
    fabric.until(lambda: seen.extend(running.waiting(f"fabric.gpu.{name}")) or seen)
    plain = "\n".join(seen)
    if fabric.rabbitmq is None:
        plain += "".join(base64.b64decode(json.loads(message)["body"]).decode() for message in seen)
    assert any(job in plain for job in jobs), "these are the messages"
    assert CANARY not in plain
    fabric.store(transitions.cancel(jobs))
    fabric.ended(jobs)
    assert CANARY not in fabric.logs()


def test_a_long_generation_is_acknowledged_when_it_is_claimed(running: Running, fabric: Fabric, model: Any) -> None:
    (job,) = fabric.accept(model("stuck"))
    fabric.until(lambda: fabric.record(job).state is JobState.RUNNING)
    fabric.until(lambda: running.unacknowledged(f"fabric.cpu.{model('stuck')}") == 0)
    assert running.waiting(f"fabric.cpu.{model('stuck')}") == []
    assert fabric.record(job).state is JobState.RUNNING
    fabric.store(transitions.cancel([job]))
    fabric.ended([job])


class TestEnds:
    def test_a_job_that_runs_is_cancelled_in_its_engine(self, fabric: Fabric, model: Any) -> None:
        (job,) = fabric.accept(model("stuck"))
        fabric.until(lambda: fabric.record(job).state is JobState.RUNNING)
        assert fabric.store(transitions.cancel([job])) == ["stopping"]
        (end,) = fabric.ended([job])
        assert end.state == "cancelled"

    def test_a_job_that_waits_is_cancelled_at_once(self, fabric: Fabric, model: Any) -> None:
        jobs = fabric.accept(model("stuck"), 40)
        fabric.until(lambda: fabric.record(jobs[0]).state is JobState.RUNNING)
        assert fabric.store(transitions.cancel([jobs[-1]])) == ["cancelled"]
        fabric.store(transitions.cancel(jobs))
        assert {end.state for end in fabric.ended(jobs)} == {"cancelled"}

    def test_a_deadline_ends_what_runs_and_what_waits(self, fabric: Fabric, model: Any) -> None:
        jobs = fabric.accept(model("stuck"), 40, deadline_ms=fabric.now_ms() + 700)
        ends = fabric.ended(jobs)
        assert {end.state for end in ends} == {"expired"}
        assert any(end.claimed_ms for end in ends)

    def test_a_failed_try_is_tried_again(self, fabric: Fabric, model: Any) -> None:
        jobs = fabric.accept(model("frail"), 6)
        ends = fabric.ended(jobs)
        assert "succeeded" in {end.state for end in ends}
        assert any(end.attempt > 1 for end in ends)

    def test_three_failures_park_the_job(self, fabric: Fabric, model: Any) -> None:
        (job,) = fabric.accept(model("broken"))
        (end,) = fabric.ended([job])
        assert (end.state, end.attempt) == ("dead", 3)
        record = fabric.record(job)
        assert [attempt.outcome for attempt in record.attempts] == ["requeued", "requeued", "dead"]

    def test_a_job_that_may_run_nowhere_says_why(self, fabric: Fabric, model: Any) -> None:
        (job,) = fabric.accept(model("quick"), needs=("vision",))
        (end,) = fabric.ended([job])
        assert end.state == "failed"
        assert "has no vision" in fabric.record(job).error["message"]  # type: ignore[index]


HEADERS: dict[str, Any] = {
    "lang": "py",
    "task": "fabric.run",
    "id": "x",
    "root_id": "x",
    "parent_id": None,
    "group": None,
    "retries": 0,
    "eta": None,
    "expires": None,
    "timelimit": [None, None],
    "argsrepr": "()",
    "kwargsrepr": "",
    "origin": "someone",
    "ignore_result": True,
}
BAD_MESSAGES: tuple[tuple[Any, dict[str, Any]], ...] = (
    ({"x": CANARY}, {"serializer": "json", "headers": {}}),
    ([[], {}, {}], {"serializer": "json", "headers": HEADERS | {"task": CANARY}}),
    ([[], {}, {}], {"serializer": "json", "headers": {"task": "fabric.run"}}),
    ([[], {}, {}], {"serializer": "pickle", "headers": HEADERS}),
    ("{" + CANARY, {"content_type": "application/json", "content_encoding": "utf-8", "headers": HEADERS}),
    ({"a": CANARY}, {"serializer": "json", "headers": HEADERS}),
    ([[], {CANARY: 1}, {}], {"serializer": "json", "headers": HEADERS}),
    ([[], {"deployment": "d", "jobs": [[CANARY]]}, {}], {"serializer": "json", "headers": HEADERS}),
    ([[], {"deployment": "d", "jobs": []}, {}], {"serializer": "json", "headers": HEADERS | {"eta": CANARY}}),
)
#: Not even an envelope: only Redis can hold these.
BAD_ITEMS = (b"\xff\xfe" + CANARY.encode(), b'["' + CANARY.encode() + b'"]', b'{"body": "' + CANARY.encode() + b'"}')


class TestMessagesThatAreNotOurs:
    """They stop nobody. The store keeps them, whatever the broker is."""

    def test_are_set_aside_while_the_others_run(self, running: Running, fabric: Fabric, model: Any) -> None:
        queue = f"fabric.cpu.{model('quick')}"
        before = fabric.store(bad_messages.count())
        with Connection(fabric.broker_url) as connection:
            producer = connection.Producer(auto_declare=False)
            for body, how in BAD_MESSAGES:
                producer.publish(body, exchange="", routing_key=queue, **how)
        count = len(BAD_MESSAGES)
        if fabric.rabbitmq is None:
            for item in BAD_ITEMS:
                running.redis.lpush(queue, item)
            count += len(BAD_ITEMS)
        assert fabric.ended(fabric.accept(model("quick"), 8))[0].state == "succeeded"
        fabric.until(lambda: fabric.store(bad_messages.count()) == before + count)
        assert running.worker.running
        assert CANARY not in running.worker.said
        assert running.worker.said.count("a message was set aside") >= count
        assert {message.queue for message in fabric.store(bad_messages.kept())[:count]} == {queue}
        if fabric.rabbitmq is None:
            assert running.unacknowledged(queue) == 0
        else:
            assert running.waiting("fabric.cpu.dead") == []


def test_jobs_of_a_message_for_a_deployment_that_is_elsewhere_go_back(fabric: Fabric, model: Any) -> None:
    """A message that is ours in form, and names what this worker doesn't have."""
    sender = Sender(make_app(fabric.broker_url), fabric.signer)
    sender.send([(Deployment(name=model("quick"), engine="mock", tier="cpu"), Chunk(deployment="x", jobs=(("j", 1),)))])
    sender.close()
    assert fabric.ended(fabric.accept(model("quick")))[0].state == "succeeded"


def test_each_deployment_has_its_queue_and_nothing_is_declared_for_delays(fabric: Fabric, model: Any) -> None:
    if fabric.rabbitmq is None:
        pytest.skip("a queue on Redis is there only while something is in it")
    rows = fabric.rabbitmq.ctl("list_queues", "name", "type")
    kinds: dict[str, str] = dict(rows)  # type: ignore[arg-type]  # rows of two columns
    assert {kinds[f"fabric.cpu.{model(name)}"] for name in ("quick", "stuck", "frail", "broken")} == {"quorum"}
    assert kinds["fabric.cpu.dead"] == "quorum"
    assert [name for name in kinds if "delayed" in name] == []
