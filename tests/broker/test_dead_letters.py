"""The tiers' dead-letter queues on RabbitMQ, and a job that falls back through real processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml
from kombu import Connection

from fabric.broker import DEAD_EXCHANGE, Sender, dead_queue, make_app, queue
from fabric.contracts.catalog import Deployment
from fabric.contracts.job import JobSpec, JobState
from fabric.contracts.message import Chunk
from fabric.contracts.secret import Secrets
from fabric.contracts.signed import Signer
from fabric.store import Store, bad_messages, reads, transitions
from fabric.store.transitions import Dispatch, NewJob
from scheduler.dead_messages import DeadMessages

if TYPE_CHECKING:
    from tests.broker.conftest import Start
    from tests.conftest import RabbitMQ

DEPLOYMENT = Deployment(name="dead-letters-gpu", engine="mock", tier="gpu")
JOB = f"job_{7:026}"
SIGNER = Signer.of(Secrets.passing())


@pytest.fixture
def drained(rabbitmq: RabbitMQ, store: Store) -> Any:
    """Until the queue is empty; answers how many messages there were."""
    dead = DeadMessages(make_app(rabbitmq.url), store, ["gpu"], SIGNER.verifier)
    yield lambda: sum(iter(dead.drain, 0))
    dead.close()


def reject(rabbitmq: RabbitMQ) -> None:
    """As a worker does with what it can't read."""
    with Connection(rabbitmq.url) as connection:
        channel = connection.default_channel
        while (message := channel.basic_get(DEPLOYMENT.queue, no_ack=False)) is None:
            pass
        channel.basic_reject(message.delivery_tag, requeue=False)


def until_it_is_dead(rabbitmq: RabbitMQ) -> None:
    with Connection(rabbitmq.url) as connection:
        while not connection.default_channel.queue_declare(dead_queue("gpu").name, passive=True).message_count:
            pass


def test_the_jobs_of_a_message_that_the_broker_gave_up_go_back(rabbitmq: RabbitMQ, store: Store, drained: Any) -> None:
    spec = JobSpec(id=JOB, endpoint="/v1/chat/completions", model="m")
    store(transitions.accept([NewJob(spec, b"{}")]))
    store(transitions.take([(spec.lane, 1)]))
    (attempt,) = store(transitions.dispatch([Dispatch(JOB, DEPLOYMENT.name, "gpu", b"{}")], claim_within_ms=3_600_000))
    sender = Sender(make_app(rabbitmq.url), SIGNER)
    sender.send([(DEPLOYMENT, Chunk(deployment=DEPLOYMENT.name, jobs=((JOB, attempt),)))])
    sender.close()
    reject(rabbitmq)
    until_it_is_dead(rabbitmq)
    assert drained() == 1
    record = store(reads.job(JOB))
    assert record is not None
    assert record.state is JobState.QUEUED
    assert [(a.outcome, (a.error or {})["code"]) for a in record.attempts] == [("requeued", "undelivered")]
    assert store(bad_messages.count()) == 0


def test_a_message_that_nobody_can_read_is_kept_with_its_bytes(rabbitmq: RabbitMQ, store: Store, drained: Any) -> None:
    with Connection(rabbitmq.url) as connection:
        queue(DEPLOYMENT)(connection.default_channel).declare()
        dead_queue("gpu")(connection.default_channel).declare()
        connection.Producer(auto_declare=False).publish(b"\xff{", exchange="", routing_key=DEPLOYMENT.queue)
    reject(rabbitmq)
    until_it_is_dead(rabbitmq)
    assert drained() == 1
    (kept,) = store(bad_messages.kept())
    assert (kept.reason, kept.body, kept.queue) == ("unknown task", b"\xff{", DEPLOYMENT.queue)


def test_a_store_that_is_away_costs_no_message(rabbitmq: RabbitMQ, store: Store, drained: Any) -> None:
    with Connection(rabbitmq.url) as connection:
        dead_queue("gpu")(connection.default_channel).declare()
        connection.Producer(auto_declare=False).publish(
            "x", exchange=DEAD_EXCHANGE.name, routing_key=dead_queue("gpu").name
        )
    until_it_is_dead(rabbitmq)
    away = DeadMessages(make_app(rabbitmq.url), Store("redis://127.0.0.1:1/0", timeout_s=0.2), ["gpu"], SIGNER.verifier)
    with pytest.raises(Exception, match="can't be reached"):
        away.drain()
    away.close()
    assert drained() == 1
    assert store(bad_messages.count()) == 1


def test_a_job_goes_on_to_its_next_place(new_fabric: Start) -> None:
    """Scheduler, worker and RabbitMQ: three tries at the first place, the answer from the second."""
    fabric = new_fabric("rabbitmq", {})
    places = [
        {"name": "falls-first", "engine": "mock", "tier": "cpu", "options": {"fail": 1}},
        {"name": "falls-second", "engine": "mock", "tier": "cpu"},
    ]
    fabric.config.write_text(yaml.safe_dump({"models": [{"name": "falls", "deployments": places}]}))
    fabric.scheduler()
    fabric.worker()
    (job,) = fabric.accept("falls")
    (end,) = fabric.ended([job])
    assert (end.state, end.attempt, end.deployment) == ("succeeded", 4, "falls-second")
    assert [(a.deployment, a.outcome) for a in end.earlier] == [
        ("falls-first", "requeued"),
        ("falls-first", "requeued"),
        ("falls-first", "exhausted"),
    ]
    assert fabric.store(reads.fallbacks()) == {("cpu", "cpu", "engine_error"): 1}


def test_a_batch_over_places_that_fail_comes_through_whole(new_fabric: Start) -> None:
    """Two schedulers, two workers, and a worker that dies in between: each line ends once, most of them elsewhere."""
    fabric = new_fabric("valkey", {})
    places = [
        {"name": "shaky", "engine": "mock", "tier": "cpu", "options": {"fail": 0.7}, "breaker": {"open_s": 0.2}},
        {"name": "sound", "engine": "mock", "tier": "cpu", "options": {"latency_ms": 5}},
    ]
    fabric.config.write_text(yaml.safe_dump({"models": [{"name": "mixed", "deployments": places}]}))
    fabric.scheduler()
    fabric.scheduler()
    fabric.worker("w1")
    doomed = fabric.worker("w2")
    lines = fabric.lines("mixed", 300)
    fabric.ended(lines[:10])
    doomed.kill()
    ends = fabric.ended(lines)
    assert {end.state for end in ends} == {"succeeded"}
    assert "sound" in {end.deployment for end in ends}
    assert fabric.store(transitions.room()).dead == {}
    assert fabric.store(reads.live_count()) == 0
