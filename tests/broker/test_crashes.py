"""Whoever dies, and whatever stops: nothing is lost, and nothing is done twice."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest

from fabric.contracts.job import JobState

if TYPE_CHECKING:
    from tests.broker.conftest import Fabric, Start

FOREVER_MS = 600_000
BROKERS = pytest.mark.parametrize("broker", ["valkey", "rabbitmq"])


def some_have_ended(fabric: Fabric, jobs: list[str], share: float) -> None:
    """Waits until about that share of the jobs has ended."""
    wanted = len(jobs) * share
    fabric.until(lambda: len(jobs) - fabric.store.redis.zcard("fabric:live") >= wanted)


@BROKERS
def test_a_dead_workers_jobs_are_claimed_by_another_within_ten_seconds(new_fabric: Start, broker: str) -> None:
    name = f"stuck-{broker}"
    fabric = new_fabric(broker, {name: {"slots": 2, "options": {"latency_ms": FOREVER_MS}}})
    fabric.scheduler()
    first = fabric.worker("first")
    jobs = fabric.accept(name, 2)
    fabric.until(lambda: {fabric.record(job).state for job in jobs} == {JobState.RUNNING})
    dead = fabric.info(first)
    assert dead is not None
    second = fabric.worker("second")
    killed_ms = fabric.now_ms()
    first.kill()
    fabric.until(lambda: all((a := fabric.record(job).attempts[-1]).number > 1 and a.claimed_ms for job in jobs))
    other = fabric.info(second)
    assert other is not None
    for job in jobs:
        lost, again = fabric.record(job).attempts
        assert (lost.worker, again.worker) == (dead.id, other.id)
        assert lost.error is not None
        assert lost.error["code"] == "worker_lost"
        assert again.claimed_ms is not None
        assert again.claimed_ms - killed_ms <= 10_000


def test_a_worker_that_was_taken_for_dead_and_comes_back_changes_nothing(new_fabric: Start) -> None:
    fabric = new_fabric("valkey", {"slow": {"slots": 2, "options": {"latency_ms": 1_000}}})
    fabric.scheduler()
    frozen = fabric.worker("frozen")
    jobs = fabric.accept("slow", 2)
    fabric.until(lambda: {fabric.record(job).state for job in jobs} == {JobState.RUNNING})
    frozen.signal(signal.SIGSTOP)
    fabric.worker("other")
    ends = fabric.ended(jobs)
    assert {(end.state, end.attempt) for end in ends} == {("succeeded", 2)}
    frozen.signal(signal.SIGCONT)
    fabric.until(lambda: (info := fabric.info(frozen)) is not None and sum(info.running.values()) == 0)
    later = fabric.accept("slow", 8)
    assert {end.state for end in fabric.ended([*jobs, *later])} == {"succeeded"}


def test_a_worker_can_be_stopped_while_it_waits_for_its_broker(new_fabric: Start) -> None:
    fabric = new_fabric("valkey", {"quick": {}}, FABRIC_BROKER_URL="amqp://127.0.0.1:1//")
    worker = fabric.start("worker", "cpu")
    fabric.until(lambda: "waiting for the broker" in worker.said)
    assert worker.stop() == 0


def test_a_worker_that_is_told_to_stop_finishes_what_it_has(new_fabric: Start) -> None:
    fabric = new_fabric("valkey", {"slow": {"slots": 4, "options": {"latency_ms": 1_500}}}, FABRIC_DRAIN_S="30")
    fabric.scheduler()
    worker = fabric.worker()
    jobs = fabric.accept("slow", 4)
    fabric.until(lambda: {fabric.record(job).state for job in jobs} == {JobState.RUNNING})
    worker.signal(signal.SIGTERM)
    fabric.until(lambda: (info := fabric.info(worker)) is None or info.draining)
    late = fabric.accept("slow", 4)
    assert worker.stop() == 0
    ends = fabric.ended(jobs)
    assert {(end.state, end.attempt) for end in ends} == {("succeeded", 1)}
    assert {fabric.record(job).state for job in late} == {JobState.QUEUED}
    fabric.worker("next")
    assert {end.state for end in fabric.ended(late)} == {"succeeded"}


def test_what_takes_longer_than_its_grace_runs_elsewhere(new_fabric: Start) -> None:
    fabric = new_fabric("valkey", {"stuck": {"slots": 2, "options": {"latency_ms": FOREVER_MS}}}, FABRIC_DRAIN_S="0.2")
    fabric.scheduler()
    first = fabric.worker("first")
    jobs = fabric.accept("stuck", 2)
    fabric.until(lambda: {fabric.record(job).state for job in jobs} == {JobState.RUNNING})
    second = fabric.worker("second")
    assert first.stop() == 0
    other = fabric.info(second)
    assert other is not None
    fabric.until(lambda: {fabric.record(job).attempts[-1].worker for job in jobs} == {other.id})
    for job in jobs:
        error = fabric.record(job).attempts[0].error
        assert error is not None
        assert error["code"] == "handed_back"


def test_two_schedulers_share_the_work(new_fabric: Start) -> None:
    fabric = new_fabric("valkey", {"quick": {"slots": 16, "options": {"latency_ms": 2}}})
    fabric.scheduler(), fabric.scheduler()
    fabric.worker()
    jobs = fabric.lines("quick", 1_000) + fabric.accept("quick", 200)
    ends = fabric.ended(jobs)
    assert {end.state for end in ends} == {"succeeded"}
    assert {end.attempt for end in ends} == {1}, "none was sent in vain"


def test_schedulers_that_are_killed_under_load(new_fabric: Start) -> None:
    fabric = new_fabric("valkey", {"quick": {"slots": 32, "options": {"latency_ms": 5}}})
    fabric.worker()
    jobs = fabric.lines("quick", 4_000)
    for share in (0.2, 0.5, 0.7):
        scheduler = fabric.scheduler()
        some_have_ended(fabric, jobs, share)
        scheduler.kill()
    fabric.scheduler()
    assert {end.state for end in fabric.ended(jobs)} == {"succeeded"}


def test_a_valkey_that_is_both_store_and_broker_is_killed_under_load(new_fabric: Start) -> None:
    fabric = new_fabric("valkey", {"quick": {"slots": 32, "options": {"latency_ms": 10}}})
    scheduler, worker = fabric.scheduler(), fabric.worker()
    jobs = fabric.lines("quick", 3_000)
    for share in (0.2, 0.6):
        some_have_ended(fabric, jobs, share)
        fabric.valkey.kill()
        time.sleep(0.3)  # an outage, not an event
        fabric.valkey.start()
    assert {end.state for end in fabric.ended(jobs)} == {"succeeded"}
    assert scheduler.running
    assert worker.running


def test_a_worker_outlives_a_valkey_without_memory(new_fabric: Start) -> None:
    """It reads its messages, and can't note that it has them."""
    fabric = new_fabric("valkey", {"quick": {}})
    worker = fabric.worker()
    fabric.scheduler()
    fabric.ended(fabric.accept("quick"))
    worker.signal(signal.SIGSTOP)
    jobs = fabric.accept("quick", 4)
    fabric.until(lambda: {fabric.record(job).state for job in jobs} == {JobState.DISPATCHED})
    fabric.store.redis.config_set("maxmemory", 1)
    worker.signal(signal.SIGCONT)
    fabric.until(lambda: "refused the write" in worker.said and "onnection to broker lost" in worker.said)
    fabric.store.redis.config_set("maxmemory", 0)
    assert {end.state for end in fabric.ended(jobs)} == {"succeeded"}
    assert worker.running


def test_a_rabbitmq_that_is_killed_under_load(new_fabric: Start) -> None:
    fabric = new_fabric("rabbitmq", {"loaded": {"slots": 32, "options": {"latency_ms": 10}}})
    assert fabric.rabbitmq is not None
    scheduler, worker = fabric.scheduler(), fabric.worker()
    # A quorum queue that is younger than a second when RabbitMQ 3.10 is killed never comes back.
    fabric.ended(fabric.lines("loaded", 200))
    made = time.monotonic()
    fabric.until(lambda: time.monotonic() - made > 2)
    jobs = fabric.lines("loaded", 4_000)
    some_have_ended(fabric, jobs, 0.3)
    fabric.rabbitmq.kill()
    waiting = fabric.accept("loaded", 4)
    fabric.until(lambda: "waiting: The broker doesn't take messages" in scheduler.said)
    fabric.rabbitmq.start()
    ends = fabric.ended([*jobs, *waiting])
    assert {end.state for end in ends} == {"succeeded"}
    assert max(end.attempt for end in ends) <= 3, "an outage costs few attempts, however long it is"
    assert scheduler.running
    assert worker.running
