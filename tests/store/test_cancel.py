"""``cancel`` and ``expire``: jobs that stop before their answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from fabric.contracts.job import JobState
from fabric.store import Store, reads, transitions

if TYPE_CHECKING:
    from tests.store.conftest import Ear, Jobs

PAST_MS = 1


def cancel(store: Store, *jobs: str) -> list[str]:
    return store(transitions.cancel(jobs))


class TestCancel:
    def test_a_waiting_job_ends_where_it_is(self, jobs: Jobs, store: Store) -> None:
        waiting, held, sent = jobs.queued(), jobs.taken(), jobs.dispatched()
        delayed = jobs.running()
        jobs.fail(delayed, delay_ms=60_000)
        every = [waiting, held, sent, delayed]
        assert cancel(store, *every) == ["cancelled"] * 4
        for job in every:
            assert jobs.places(job) == {"jobs:default"}
            assert len(jobs.completions(job)) == 1
            error = jobs.record(job).error
            assert error is not None
            assert error["code"] == "cancelled"

    def test_a_running_one_is_stopped_by_its_worker(
        self, jobs: Jobs, store: Store, listen: Callable[[str], Ear]
    ) -> None:
        ear = listen(reads.worker_channel("w1"))
        job = jobs.running(worker="w1")
        assert cancel(store, job) == ["stopping"]
        assert ear.heard(1) == [[job, "cancelled"]]
        assert jobs.state(job) is JobState.RUNNING
        assert jobs.commit(job, JobState.CANCELLED)
        assert jobs.places(job) == {"jobs:default"}

    def test_an_answer_that_was_already_there_still_counts(self, jobs: Jobs, store: Store) -> None:
        job = jobs.running()
        cancel(store, job)
        assert jobs.commit(job, JobState.SUCCEEDED)

    def test_an_ended_job_stays_as_it_is(self, jobs: Jobs, store: Store) -> None:
        assert cancel(store, jobs.ended(), jobs.dead(), "job_unknown") == ["succeeded", "dead", ""]

    def test_twice_is_once(self, jobs: Jobs, store: Store) -> None:
        job = jobs.queued()
        assert [cancel(store, job), cancel(store, job)] == [["cancelled"], ["cancelled"]]
        assert len(jobs.completions(job)) == 1

    def test_a_message_that_arrives_afterwards_is_stale(self, jobs: Jobs, store: Store) -> None:
        job = jobs.dispatched()
        cancel(store, job)
        assert not jobs.claim(job)

    def test_a_worker_that_dies_or_leaves_first_ends_it_too(self, jobs: Jobs, store: Store) -> None:
        died, left, unheard_of = (jobs.running(worker=worker) for worker in ("w1", "w2", "w3"))
        cancel(store, died, left, unheard_of)
        jobs.beat("w3", forgotten_ms=-1)
        store(transitions.hand_back("w2"))
        store.redis.zrem("fabric:workers", "w3")
        jobs.rescue()
        assert [jobs.state(job) for job in (died, left, unheard_of)] == [JobState.CANCELLED] * 3


class TestExpire:
    def test_a_waiting_job_past_its_deadline_ends(self, jobs: Jobs, store: Store) -> None:
        waiting = jobs.queued(deadline_ms=PAST_MS)
        held = jobs.taken(deadline_ms=PAST_MS)
        sent = jobs.dispatched(deadline_ms=PAST_MS)
        assert store(transitions.expire()) == 3
        for job in (waiting, held, sent):
            assert jobs.state(job) is JobState.EXPIRED
            assert jobs.places(job) == {"jobs:default"}
            error = jobs.record(job).error
            assert error is not None
            assert error["code"] == "deadline_exceeded"
        assert store(transitions.expire()) == 0

    def test_a_running_one_is_stopped_by_its_worker(
        self, jobs: Jobs, store: Store, listen: Callable[[str], Ear]
    ) -> None:
        ear = listen(reads.worker_channel("w1"))
        job = jobs.running(worker="w1", deadline_ms=PAST_MS)
        assert store(transitions.expire()) == 1
        assert ear.heard(1) == [[job, "expired"]]
        assert jobs.beat("w1", job) == {job: "expired"}
        assert jobs.commit(job, JobState.EXPIRED)
        assert jobs.places(job) == {"jobs:default"}

    def test_one_that_its_worker_could_not_end_says_that_its_time_was_over(self, jobs: Jobs, store: Store) -> None:
        failed, lost = jobs.running(worker="w1", deadline_ms=PAST_MS), jobs.running(worker="w2", deadline_ms=PAST_MS)
        store(transitions.expire())
        assert jobs.fail(failed) == "ended"
        jobs.rescue()
        for job in (failed, lost):
            record = jobs.record(job)
            assert record.state is JobState.EXPIRED
            assert record.error is not None
            assert record.error["code"] == "deadline_exceeded"

    def test_a_deadline_ahead_is_left_alone(self, jobs: Jobs, store: Store) -> None:
        jobs.queued(deadline_ms=int(time.time() * 1000) + 60_000)
        jobs.queued()
        assert store(transitions.expire()) == 0

    @pytest.mark.parametrize("end", ["commit", "cancel", "reject"])
    def test_a_job_that_ended_has_no_deadline_any_more(self, jobs: Jobs, store: Store, end: str) -> None:
        if end == "commit":
            jobs.ended(deadline_ms=4_000_000_000_000)
        elif end == "cancel":
            cancel(store, jobs.queued(deadline_ms=4_000_000_000_000))
        else:
            jobs.reject(jobs.taken(deadline_ms=4_000_000_000_000))
        assert jobs.members("deadlines") == set()

    def test_no_more_than_asked_at_once(self, jobs: Jobs, store: Store) -> None:
        for _ in range(3):
            jobs.queued(deadline_ms=PAST_MS)
        assert [store(transitions.expire(at_most=2)) for _ in range(2)] == [2, 1]

    def test_an_id_without_a_record_is_dropped(self, jobs: Jobs, store: Store) -> None:
        store.redis.zadd("fabric:deadlines", {"job_gone": 0})
        assert store(transitions.expire()) == 0
        assert jobs.members("deadlines") == set()
