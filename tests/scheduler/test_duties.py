"""The standing duties: what a crash or the clock left behind is mended."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from fabric.contracts.errors import Unavailable
from fabric.contracts.job import JobSpec, JobState
from fabric.store import Command, Store, reads, transitions
from fabric.store.transitions import NewJob
from scheduler.duties import DEAD_AFTER_MS, DUTIES, Done, Duty, perform, run_duties
from workers.lifeline import BEAT_S


def test_a_dead_workers_jobs_run_elsewhere_within_ten_seconds() -> None:
    """The promise, from the built-in times: a beat, the silence after it, a sweep, and time to spare."""
    assert BEAT_S * 1000 + DEAD_AFTER_MS + 500 <= 7_000
    assert DEAD_AFTER_MS >= 4 * BEAT_S * 1000, "a busy machine isn't a dead one"


def test_each_is_done_again_and_again_until_told_to_stop(store: Store) -> None:
    stop = threading.Event()
    expired = JobSpec("job_1", "/v1/completions", "m", deadline_ms=1)
    store(transitions.accept([NewJob(expired, b"{}")]))
    thread = threading.Thread(target=run_duties, args=(store, stop))
    thread.start()
    until = threading.Event()
    for _ in range(200):
        if store(reads.state("job_1")) is JobState.EXPIRED:
            break
        until.wait(0.05)
    stop.set()
    thread.join(timeout=10)
    assert not thread.is_alive()
    assert store(reads.state("job_1")) is JobState.EXPIRED


def test_a_duty_with_more_to_do_goes_on_at_once(store: Store) -> None:
    left = [Done(more=True), Done("one sentence", more=True), Done()]
    perform(Duty("test", lambda _: left.pop(0)), store, threading.Event())
    assert left == []


def test_all_that_is_due_is_done_in_one_go(store: Store) -> None:
    specs = [JobSpec(f"job_{n:04}", "/v1/completions", "m", deadline_ms=1) for n in range(1_100)]
    store(transitions.accept([NewJob(spec, b"{}") for spec in specs]))
    (expire,) = [duty for duty in DUTIES if duty.name == "expire"]
    perform(expire, store, threading.Event())
    assert store(reads.live_count()) == 0


def test_it_says_how_many_but_not_which(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    store(transitions.accept([NewJob(JobSpec("job_secret", "/v1/completions", "m", deadline_ms=1), b"{}")]))
    for duty in DUTIES:
        perform(duty, store, threading.Event())
    assert caplog.messages == ["expire: 1 jobs passed their deadline"]


def test_a_store_that_is_away_is_waited_for() -> None:
    stop, tries = threading.Event(), []

    def away(command: Command[Any]) -> Any:
        tries.append(command)
        if len(tries) == 3:
            stop.set()
        raise Unavailable("away")

    run_duties(away, stop)  # type: ignore[arg-type]
    assert len(tries) == 3
