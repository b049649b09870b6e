"""``replay`` and the parked jobs: out of tries, kept whole, brought back under the same id."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fabric.contracts.job import JobState
from fabric.store import Store, reads, transitions
from fabric.store.transitions import Piece

if TYPE_CHECKING:
    from tests.store.conftest import Jobs


def replay(store: Store, *jobs: str) -> list[str]:
    return store(transitions.replay(jobs))


def poisoned(jobs: Jobs) -> str:
    """Parked because its third worker died."""
    job = jobs.queued()
    for worker in ("w1", "w2", "w3"):
        jobs.run_again(job, worker)
        jobs.rescue()
    assert jobs.state(job) is JobState.DEAD
    return job


def test_a_parked_job_is_kept_whole_for_as_long_as_it_takes(jobs: Jobs, store: Store) -> None:
    job = poisoned(jobs)
    assert store(reads.payload(job)) == b"sealed"
    assert {jobs.ttl_s(key) for key in (f"job:{job}", f"payload:{job}", f"events:{job}")} == {-1}
    assert store(transitions.forget([job])) == 0
    assert jobs.places(job) == {"dead", "jobs:default"}


def test_the_newest_are_listed_first(jobs: Jobs, store: Store) -> None:
    parked = [jobs.dead() for _ in range(3)]
    for score, job in enumerate(parked):
        store.redis.zadd("fabric:dead", {job: score})
    assert store(reads.parked(limit=2)) == [parked[2], parked[1]]
    assert store(reads.parked_count()) == 3


def test_a_list_goes_on_where_it_was(jobs: Jobs, store: Store) -> None:
    parked = sorted(jobs.dead() for _ in range(5))
    store.redis.zadd("fabric:dead", {job: score // 2 for score, job in enumerate(parked)})  # two of a millisecond
    assert store(reads.parked(limit=3)) == parked[:1:-1]
    assert store(reads.parked(limit=3, offset=3)) == parked[1::-1]
    assert store(reads.parked(limit=9, before_ms=2)) == parked[3::-1]


def test_a_parked_job_is_no_longer_live(jobs: Jobs, store: Store) -> None:
    poisoned(jobs)
    assert store(reads.live_count()) == 0


class TestReplay:
    def test_the_job_lines_up_again_under_its_id(self, jobs: Jobs, store: Store) -> None:
        job = poisoned(jobs)
        assert replay(store, job) == ["queued"]
        record = jobs.record(job)
        assert record.state is JobState.QUEUED
        assert (record.error, record.finished_ms) == (None, None)
        assert jobs.places(job) == {"lane:interactive|default|small", "live", "jobs:default"}
        assert jobs.event_types(job)[-2:] == ["dead", "queued"]

    def test_it_can_end_again(self, jobs: Jobs, store: Store) -> None:
        job = poisoned(jobs)
        replay(store, job)
        jobs.run_again(job)
        assert jobs.commit(job)
        assert [c.state for c in jobs.completions(job)] == ["dead", "succeeded"]

    def test_its_history_goes_on(self, jobs: Jobs, store: Store) -> None:
        job = poisoned(jobs)
        replay(store, job)
        jobs.run_again(job, "w4")
        jobs.commit(job)
        attempts = jobs.record(job).attempts
        assert [(a.number, a.worker, a.outcome) for a in attempts] == [
            (1, "w1", "requeued"),
            (2, "w2", "requeued"),
            (3, "w3", "dead"),
            (4, "w4", "succeeded"),
        ]

    def test_deaths_count_from_nothing(self, jobs: Jobs, store: Store) -> None:
        job = poisoned(jobs)
        replay(store, job)
        jobs.run_again(job, "w4")
        assert jobs.rescue() == (1, 0)

    def test_a_job_parked_without_a_try_has_none_afterwards(self, jobs: Jobs, store: Store) -> None:
        job = jobs.dead()
        replay(store, job)
        assert jobs.record(job).attempts == ()

    def test_only_parked_jobs_move(self, jobs: Jobs, store: Store) -> None:
        running, ended = jobs.running(), jobs.ended()
        assert replay(store, running, ended, "job_unknown") == ["running", "succeeded", ""]
        assert jobs.lane() == []

    def test_twice_is_once(self, jobs: Jobs, store: Store) -> None:
        job = jobs.dead()
        assert [replay(store, job), replay(store, job)] == [["queued"], ["queued"]]
        assert jobs.lane() == [job]
        assert jobs.event_types(job).count("queued") == 2

    def test_a_deadline_ahead_counts_again(self, jobs: Jobs, store: Store) -> None:
        ahead = int(time.time() * 1000) + 60_000
        job = jobs.dead(deadline_ms=ahead)
        replay(store, job)
        assert store.redis.zscore("fabric:deadlines", job) == ahead

    def test_a_deadline_that_has_passed_does_not_undo_it(self, jobs: Jobs, store: Store) -> None:
        job = jobs.dead(deadline_ms=1)
        replay(store, job)
        assert store(transitions.expire()) == 0
        assert jobs.state(job) is JobState.QUEUED

    def test_a_stream_that_had_spoken_may_speak_again(self, jobs: Jobs, store: Store) -> None:
        job = jobs.queued(stream=True)
        for worker in ("w1", "w2"):
            jobs.run_again(job, worker)
            jobs.rescue()
        jobs.run_again(job, "w3")
        store(transitions.emit([Piece(job, 3, b'{"type":"token"}')]))
        assert jobs.rescue() == (0, 1)
        replay(store, job)
        jobs.take()
        jobs.send(job, claim_within_ms=-1)
        assert store(transitions.reclaim()) == (1, 0)
        jobs.run_again(job, "w4")
        assert jobs.fail(job) == "queued"


class TestDrop:
    def test_nothing_of_the_job_stays(self, jobs: Jobs, store: Store) -> None:
        dropped, kept = poisoned(jobs), jobs.dead()
        assert store(transitions.drop([dropped, kept[:-1]])) == [1, 0]
        assert jobs.places(dropped) == set()
        assert [key for key in store.redis.scan_iter("*") if dropped.encode() in key] == []
        assert store(reads.parked(limit=9)) == [kept]
        assert [c.state for c in jobs.completions(dropped)] == ["dead"]

    def test_only_parked_jobs_go(self, jobs: Jobs, store: Store) -> None:
        every = [jobs.queued(), jobs.running(), jobs.ended(), "job_unknown"]
        assert store(transitions.drop(every)) == [0] * 4
        assert [jobs.state(job) for job in every[:3]] == [JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED]

    def test_it_cannot_be_replayed(self, jobs: Jobs, store: Store) -> None:
        job = jobs.dead()
        assert store(transitions.drop([job])) == [1]
        assert store(transitions.drop([job])) == [0]
        assert replay(store, job) == [""]

    def test_a_job_that_was_replayed_is_safe(self, jobs: Jobs, store: Store) -> None:
        job = jobs.dead()
        replay(store, job)
        assert store(transitions.drop([job])) == [0]
        assert jobs.state(job) is JobState.QUEUED
