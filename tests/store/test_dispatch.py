"""``dispatch``, ``reject``, ``recall``, ``reclaim``: from a scheduler's hand to a worker's queue, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fabric.contracts.errors import DeadlineExceeded
from fabric.contracts.job import JobState
from fabric.store import Store, transitions
from fabric.store.transitions import Dispatch, Rejection

if TYPE_CHECKING:
    from tests.store.conftest import Jobs


class TestDispatch:
    def test_it_numbers_the_attempt_and_keeps_the_decision(self, jobs: Jobs, store: Store) -> None:
        job = jobs.taken()
        assert store(transitions.dispatch([Dispatch(job, "small-cpu", "cpu", b'{"policy":"default"}')])) == [1]
        record = jobs.record(job)
        assert record.state is JobState.DISPATCHED
        assert record.decision == {"policy": "default"}
        (attempt,) = record.attempts
        assert (attempt.number, attempt.deployment, attempt.tier, attempt.worker) == (1, "small-cpu", "cpu", None)
        assert attempt.outcome == "dispatched"
        assert attempt.dispatched_ms is not None

    def test_the_job_counts_as_busy_there(self, jobs: Jobs) -> None:
        job = jobs.dispatched()
        assert jobs.places(job) == {"dispatched", "busy:small-cpu", "live", "jobs:default"}

    def test_sent_again_it_is_refused(self, jobs: Jobs) -> None:
        job = jobs.taken()
        assert [jobs.send(job), jobs.send(job)] == [1, 0]
        assert jobs.record(job).attempts[-1].number == 1

    def test_a_job_that_is_not_in_hand_is_not_sent(self, jobs: Jobs) -> None:
        assert [jobs.send(job) for job in (jobs.queued(), jobs.running(), jobs.ended(), "job_unknown")] == [0] * 4

    def test_a_job_cancelled_in_hand_is_not_sent(self, jobs: Jobs, store: Store) -> None:
        job = jobs.taken()
        store(transitions.cancel([job]))
        assert jobs.send(job) == 0
        assert jobs.places(job) == {"jobs:default"}

    def test_numbers_only_grow(self, jobs: Jobs) -> None:
        job = jobs.queued()
        numbers = []
        for _ in range(3):
            jobs.take()
            numbers.append(jobs.send(job))
            jobs.claim(job)
            jobs.fail(job)
        assert numbers == [1, 2, 3]

    def test_a_deployment_takes_no_more_than_it_may_hold_however_many_schedulers_send(
        self, jobs: Jobs, store: Store
    ) -> None:
        running, first, second, third = jobs.running(), jobs.queued(), jobs.queued(), jobs.queued()
        jobs.take(3)
        sent = [Dispatch(job, "small-cpu", "cpu", b"{}", limit=2) for job in (first, second)]
        assert store(transitions.dispatch(sent)) == [1, transitions.FULL]
        assert store(transitions.dispatch([Dispatch(third, "small-cpu", "cpu", b"{}", limit=2)])) == [transitions.FULL]
        assert store(transitions.dispatch([Dispatch(third, "small-gpu", "gpu", b"{}", limit=1)])) == [1]
        assert jobs.members("taken") == {second}, "still in hand, to be put back"
        assert jobs.members("busy:small-cpu") == {running, first}


class TestReject:
    def test_the_job_ends_with_the_reason(self, jobs: Jobs) -> None:
        job = jobs.taken()
        assert jobs.reject(job, JobState.FAILED) == 1
        record = jobs.record(job)
        assert record.state is JobState.FAILED
        assert record.error is not None
        assert record.error["code"] == "no_eligible_deployment"
        assert record.decision == {"plan": []}
        assert record.attempts == ()
        assert jobs.places(job) == {"jobs:default"}

    def test_without_a_decision_none_is_kept(self, jobs: Jobs, store: Store) -> None:
        job = jobs.taken()
        error = DeadlineExceeded("Too late.").info
        store(transitions.reject([Rejection(job, JobState.EXPIRED, error)]))
        assert jobs.record(job).decision is None
        assert jobs.state(job) is JobState.EXPIRED

    def test_twice_is_once(self, jobs: Jobs) -> None:
        job = jobs.taken()
        assert [jobs.reject(job), jobs.reject(job)] == [1, 0]
        assert len(jobs.completions(job)) == 1

    def test_only_taken_jobs_are_rejected(self, jobs: Jobs) -> None:
        waiting, sent, cancelled = jobs.queued(), jobs.dispatched(tenant="b"), jobs.taken(tenant="c")
        jobs.store(transitions.cancel([cancelled]))
        assert [jobs.reject(job) for job in (waiting, sent, cancelled, "job_unknown")] == [0] * 4
        assert jobs.state(waiting) is JobState.QUEUED


class TestRecall:
    def test_a_message_that_was_not_sent_puts_the_job_back(self, jobs: Jobs, store: Store) -> None:
        job = jobs.dispatched()
        assert store(transitions.recall([(job, 1)])) == 1
        assert jobs.places(job) == {"lane:interactive|default|small", "live", "jobs:default"}
        (attempt,) = jobs.record(job).attempts
        assert attempt.outcome == "requeued"
        assert attempt.error is not None
        assert attempt.error["code"] == "unsent"

    def test_a_message_that_got_through_after_all_is_stale(self, jobs: Jobs, store: Store) -> None:
        job = jobs.dispatched()
        store(transitions.recall([(job, 1)]))
        assert not jobs.claim(job, attempt=1)
        jobs.run_again(job)
        assert jobs.attempts[job] == 2

    def test_only_the_attempt_that_is_out_is_recalled(self, jobs: Jobs, store: Store) -> None:
        job = jobs.dispatched()
        running = jobs.running()
        assert store(transitions.recall([(job, 2), (running, 1), ("job_unknown", 1)])) == 0
        assert jobs.state(job) is JobState.DISPATCHED

    def test_twice_is_once(self, jobs: Jobs, store: Store) -> None:
        job = jobs.dispatched()
        assert [store(transitions.recall([(job, 1)])) for _ in range(2)] == [1, 0]

    def test_a_job_that_goes_round_for_hours_keeps_a_bounded_history(self, jobs: Jobs, store: Store) -> None:
        job = jobs.queued()
        for _ in range(200):
            jobs.take()
            store(transitions.recall([(job, jobs.send(job))]))
        attempts = jobs.record(job).attempts
        assert store.redis.hstrlen(f"fabric:job:{job}", "history") <= 32_768
        numbers = [attempt.number for attempt in attempts]
        assert numbers == list(range(201 - len(numbers), 201)), "the newest ones, in order"


class TestDecline:
    def test_a_worker_sends_back_what_it_does_not_claim(self, jobs: Jobs, store: Store) -> None:
        job = jobs.dispatched()
        assert store(transitions.decline([(job, 1)])) == 1
        assert jobs.lane() == [job]
        error = jobs.record(job).attempts[0].error
        assert error is not None
        assert error["code"] == "declined"

    def test_not_what_somebody_claimed(self, jobs: Jobs, store: Store) -> None:
        job = jobs.running()
        assert store(transitions.decline([(job, 1)])) == 0
        assert jobs.state(job) is JobState.RUNNING


class TestUnclaimed:
    def test_a_dispatch_that_nobody_claims_in_time_goes_back(self, jobs: Jobs, store: Store) -> None:
        job = jobs.dispatched(claim_within_ms=-1)
        assert store(transitions.reclaim()) == (1, 0)
        assert jobs.lane() == [job]
        error = jobs.record(job).attempts[0].error
        assert error is not None
        assert error["code"] == "unclaimed"
        assert store(transitions.reclaim()) == (0, 0)

    def test_its_message_is_stale_from_then_on(self, jobs: Jobs, store: Store) -> None:
        job = jobs.dispatched(claim_within_ms=-1)
        store(transitions.reclaim())
        assert not jobs.claim(job)

    def test_a_claimed_one_stays(self, jobs: Jobs, store: Store) -> None:
        job = jobs.dispatched(claim_within_ms=-1)
        jobs.claim(job)
        assert store(transitions.reclaim()) == (0, 0)
        assert jobs.state(job) is JobState.RUNNING

    def test_no_more_than_asked_at_once(self, jobs: Jobs, store: Store) -> None:
        for _ in range(3):
            jobs.dispatched(claim_within_ms=-1)
        assert [store(transitions.reclaim(at_most=2))[0] for _ in range(2)] == [2, 1]

    def test_an_id_without_a_record_is_dropped(self, jobs: Jobs, store: Store) -> None:
        store.redis.zadd("fabric:dispatched", {"job_gone": 0})
        store.redis.zadd("fabric:taken", {"job_gone": 0})
        assert store(transitions.reclaim()) == (0, 0)
        assert jobs.places("job_gone") == set()
