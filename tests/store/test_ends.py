"""``commit`` and ``fail``: how attempts end. A job ends once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fabric.contracts.job import JobState, Measures, Usage
from fabric.store import Store, reads, transitions
from fabric.store.transitions import Outcome, Piece

if TYPE_CHECKING:
    from tests.store.conftest import Jobs

MEASURES = Measures(engine_s=0.25, usage=Usage(input_tokens=7, output_tokens=3), cost_usd=0.001, served_model="m")


class TestCommit:
    def test_the_result_is_there_to_be_read(self, jobs: Jobs) -> None:
        job = jobs.running()
        assert jobs.commit(job, result=b'{"answer":1}', measures=MEASURES.dump())
        record = jobs.record(job)
        assert record.state is JobState.SUCCEEDED
        assert record.result == b'{"answer":1}'
        assert record.measures == MEASURES
        assert record.finished_ms is not None
        assert [a.outcome for a in record.attempts] == ["succeeded"]

    def test_the_job_is_in_no_index_but_the_list_of_open_jobs(self, jobs: Jobs) -> None:
        assert jobs.places(jobs.ended()) == {"jobs:default"}
        assert jobs.places(jobs.ended(batch_id="batch_1", priority="batch")) == set()

    def test_the_payload_goes_at_once(self, jobs: Jobs, store: Store) -> None:
        assert store(reads.payload(jobs.ended())) is None

    def test_success_keeps_the_pace_of_its_deployment(self, jobs: Jobs, store: Store) -> None:
        assert store(reads.pace()) == {}
        jobs.ended(JobState.FAILED)
        assert store(reads.pace()) == {}
        store.redis.hset("fabric:pace", "small-cpu", "10")
        jobs.ended()
        assert store(reads.pace())["small-cpu"] == pytest.approx(9, abs=0.5)

    def test_an_error_is_kept_with_the_end(self, jobs: Jobs) -> None:
        record = jobs.record(jobs.ended(JobState.FAILED))
        assert record.error is not None
        assert record.error["code"] == "engine_error"
        assert record.attempts[-1].error == record.error

    @pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled", "expired", "dead"])
    def test_every_end_makes_one_completion(self, jobs: Jobs, state: str) -> None:
        job = jobs.running(worker="w1")
        jobs.commit(job, JobState(state), measures=MEASURES.dump())
        jobs.commit(job, JobState(state))
        (completion,) = jobs.completions()
        record = jobs.record(job)
        assert completion.spec == record.spec
        assert completion.state == state
        assert (completion.attempt, completion.deployment, completion.tier) == (1, "small-cpu", "cpu")
        assert completion.worker == "w1"
        assert completion.measures == MEASURES
        assert completion.accepted_ms == record.accepted_ms
        assert completion.finished_ms == record.finished_ms
        assert completion.dispatched_ms == record.attempts[0].dispatched_ms
        assert completion.claimed_ms == record.attempts[0].claimed_ms

    def test_a_batch_lines_result_travels_in_the_completion_and_nowhere_else(self, jobs: Jobs) -> None:
        job = jobs.quiet()
        jobs.run_again(job)
        jobs.commit(job, result=b'{"answer":1}')
        (completion,) = jobs.completions(job)
        assert completion.result == b'{"answer":1}'
        assert jobs.record(job).result is None

    def test_another_jobs_result_stays_out_of_it(self, jobs: Jobs) -> None:
        (completion,) = jobs.completions(jobs.ended())
        assert completion.result is None

    def test_a_second_commit_changes_nothing_and_is_counted(self, jobs: Jobs, store: Store) -> None:
        job = jobs.ended()
        before = store.redis.hgetall(f"fabric:job:{job}")
        assert not jobs.commit(job, JobState.FAILED, b'{"other":1}')
        assert store.redis.hgetall(f"fabric:job:{job}") == before
        assert len(jobs.completions(job)) == 1
        assert store(reads.fenced_count()) == 1

    def test_a_late_attempt_cannot_end_a_job_that_runs_elsewhere(self, jobs: Jobs) -> None:
        job = jobs.running(worker="w1")
        jobs.rescue()
        jobs.run_again(job, "w2")
        assert not jobs.commit(job, attempt=1)
        assert jobs.commit(job, attempt=2)

    def test_in_a_call_each_outcome_has_its_own_answer(self, jobs: Jobs, store: Store) -> None:
        good, late = jobs.running(), jobs.ended()
        outcomes = [Outcome(job, 1, JobState.SUCCEEDED) for job in (late, good, good, "job_unknown")]
        assert store(transitions.commit(outcomes)) == [0, 1, 0, 0]
        assert store(reads.fenced_count()) == 3

    def test_only_running_jobs_end(self, jobs: Jobs) -> None:
        waiting, sent = jobs.queued(), jobs.dispatched()
        assert not jobs.commit(waiting, attempt=0)
        assert not jobs.commit(sent)
        assert (jobs.state(waiting), jobs.state(sent)) == (JobState.QUEUED, JobState.DISPATCHED)


class TestFail:
    def test_the_job_gets_another_try(self, jobs: Jobs) -> None:
        job = jobs.running(worker="w1")
        assert jobs.fail(job) == "queued"
        assert jobs.places(job) == {"lane:interactive|default|small", "live", "jobs:default"}
        record = jobs.record(job)
        (attempt,) = record.attempts
        assert (attempt.number, attempt.worker, attempt.outcome) == (1, "w1", "requeued")
        assert attempt.error is not None
        assert attempt.error["code"] == "engine_error"
        assert record.error is None, "that was the attempt's error, not the job's"
        assert jobs.completions() == []

    def test_every_attempt_is_remembered(self, jobs: Jobs) -> None:
        job = jobs.running(worker="w1")
        jobs.fail(job)
        jobs.run_again(job, "w2")
        jobs.fail(job)
        jobs.run_again(job, "w3")
        jobs.commit(job)
        attempts = jobs.record(job).attempts
        assert [(a.number, a.worker, a.outcome) for a in attempts] == [
            (1, "w1", "requeued"),
            (2, "w2", "requeued"),
            (3, "w3", "succeeded"),
        ]

    def test_a_late_failure_is_refused_and_counted(self, jobs: Jobs, store: Store) -> None:
        job = jobs.running(worker="w1")
        jobs.rescue()
        assert jobs.fail(job) == "fenced"
        jobs.run_again(job, "w2")
        assert jobs.fail(job, attempt=1) == "fenced"
        assert jobs.state(job) is JobState.RUNNING
        assert store(reads.fenced_count()) == 2

    def test_twice_is_once(self, jobs: Jobs) -> None:
        job = jobs.running()
        assert [jobs.fail(job), jobs.fail(job)] == ["queued", "fenced"]
        assert len(jobs.record(job).attempts) == 1

    def test_an_unknown_job_is_fenced(self, jobs: Jobs) -> None:
        assert jobs.fail("job_unknown", attempt=1) == "fenced"

    def test_a_cancelled_job_ends_instead(self, jobs: Jobs, store: Store) -> None:
        job = jobs.running()
        store(transitions.cancel([job]))
        assert jobs.fail(job) == "ended"
        assert jobs.state(job) is JobState.CANCELLED

    def test_a_stream_that_has_spoken_cannot_start_again_in_a_second_voice(self, jobs: Jobs, store: Store) -> None:
        job = jobs.running(stream=True)
        store(transitions.emit([Piece(job, 1, b'{"type":"token"}')]))
        assert jobs.fail(job) == "ended"
        record = jobs.record(job)
        assert record.state is JobState.FAILED
        assert record.error is not None
        assert record.error["code"] == "stream_broken"

    def test_a_stream_that_has_not_spoken_may(self, jobs: Jobs) -> None:
        job = jobs.running(stream=True)
        assert jobs.fail(job) == "queued"


class TestFailedTries:
    """Only an engine's failures count against a job."""

    def failures(self, jobs: Jobs, job: str) -> int:
        """What the next worker is told."""
        if jobs.state(job) is JobState.QUEUED:
            jobs._take(job)
            assert jobs.send(job)
        (claimed,) = jobs.store(transitions.claim("w9", [(job, jobs.attempts[job])]))
        return claimed.failures

    def test_each_failure_counts(self, jobs: Jobs) -> None:
        job = jobs.running()
        jobs.fail(job)
        assert self.failures(jobs, job) == 1
        jobs.fail(job)
        assert self.failures(jobs, job) == 2

    def test_a_claim_that_is_asked_again_hears_the_same(self, jobs: Jobs) -> None:
        job = jobs.running()
        jobs.fail(job)
        assert [self.failures(jobs, job), self.failures(jobs, job)] == [1, 1]

    def test_a_late_failure_does_not(self, jobs: Jobs) -> None:
        job = jobs.running(worker="w1")
        jobs.rescue()
        jobs.fail(job)
        assert self.failures(jobs, job) == 0

    def test_nor_do_lost_messages_workers_that_leave_and_workers_that_die(self, jobs: Jobs, store: Store) -> None:
        job = jobs.dispatched()
        store(transitions.recall([(job, 1)]))
        jobs._take(job)
        store(transitions.decline([(job, jobs.send(job))]))
        jobs._take(job)
        jobs.send(job, claim_within_ms=-1)
        store(transitions.reclaim())
        jobs.run_again(job, "w1")
        store(transitions.hand_back("w1"))
        jobs.run_again(job, "w1")
        jobs.rescue()
        jobs.run_again(job, "w1")
        jobs.beat("w1", forgotten_ms=-1)
        assert self.failures(jobs, job) == 0
        assert len(jobs.record(job).attempts) == 7

    def test_a_replayed_job_starts_afresh(self, jobs: Jobs, store: Store) -> None:
        job = jobs.running()
        jobs.fail(job)
        jobs.run_again(job)
        jobs.commit(job, JobState.DEAD)
        store(transitions.replay([job]))
        assert self.failures(jobs, job) == 0
