"""``claim``, ``heartbeat``, ``hand_back``, ``rescue``: who holds a job, and what becomes of it when they don't."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fabric.contracts.job import JobState
from fabric.store import Store, reads, transitions
from fabric.store.transitions import Piece

if TYPE_CHECKING:
    from tests.store.conftest import Jobs


class TestClaim:
    def test_the_worker_gets_what_it_needs_to_run_the_job(self, jobs: Jobs, store: Store) -> None:
        job = jobs.dispatched(payload=b"sealed")
        (claimed,) = store(transitions.claim("w1", [(job, 1)]))
        assert claimed.spec == jobs.record(job).spec
        assert (claimed.attempt, claimed.payload) == (1, b"sealed")
        record = jobs.record(job)
        assert record.state is JobState.RUNNING
        assert record.attempts[0].worker == "w1"
        assert record.attempts[0].claimed_ms is not None
        assert jobs.places(job) == {"held:w1", "busy:small-cpu", "live", "jobs:default"}

    def test_it_hears_how_long_there_is_to_the_deadline(self, jobs: Jobs, store: Store) -> None:
        seconds, microseconds = store.redis.time()
        job = jobs.dispatched(deadline_ms=int(seconds * 1000 + microseconds // 1000) + 60_000)
        (claimed,) = store(transitions.claim("w1", [(job, 1)]))
        assert claimed.left_ms is not None
        assert 0 < claimed.left_ms <= 60_000
        (other,) = store(transitions.claim("w1", [(jobs.dispatched(), 1)]))
        assert other.left_ms is None

    def test_one_worker_holds_it(self, jobs: Jobs) -> None:
        job = jobs.dispatched()
        assert [jobs.claim(job, "w1"), jobs.claim(job, "w2")] == [True, False]
        assert jobs.places(job) >= {"held:w1"}
        assert "held:w2" not in jobs.places(job)

    def test_asked_again_the_same_worker_gets_the_same_answer(self, jobs: Jobs, store: Store) -> None:
        job = jobs.dispatched()
        answers = [store(transitions.claim("w1", [(job, 1)])) for _ in range(2)]
        assert answers[0] == answers[1]
        assert jobs.event_types(job) == ["queued", "dispatched", "running"]

    def test_a_stale_message_gets_nothing(self, jobs: Jobs, store: Store) -> None:
        again = jobs.running()
        jobs.fail(again)
        jobs.run_again(again)
        ended, cancelled, waiting = jobs.ended(), jobs.dispatched(), jobs.queued()
        store(transitions.cancel([cancelled]))
        stale = [(again, 1), (ended, 1), (cancelled, 1), (waiting, 0), ("job_unknown", 1)]
        assert store(transitions.claim("w2", stale)) == []

    def test_in_a_chunk_each_job_has_its_own_answer(self, jobs: Jobs, store: Store) -> None:
        fresh, ended = jobs.dispatched(), jobs.ended()
        assert [c.spec.id for c in store(transitions.claim("w1", [(ended, 1), (fresh, 1)]))] == [fresh]

    def test_it_is_a_sign_of_life(self, jobs: Jobs) -> None:
        jobs.running(worker="w1")
        assert jobs.members("workers") == {"w1"}


class TestHeartbeat:
    def test_all_is_well(self, jobs: Jobs) -> None:
        job = jobs.running(worker="w1")
        assert jobs.beat("w1", job) == {}

    def test_what_it_says_of_itself_is_kept_for_a_while(self, jobs: Jobs, store: Store) -> None:
        jobs.beat("w1")
        (info,) = store(transitions.room()).workers
        assert (info.id, info.capacity) == ("w1", {"small-cpu": 4})
        assert 25 < jobs.ttl_s("worker:w1") <= 30

    def test_it_hears_which_jobs_to_stop(self, jobs: Jobs, store: Store) -> None:
        job = jobs.running(worker="w1")
        store(transitions.cancel([job]))
        assert jobs.beat("w1", job) == {job: "cancelled"}
        assert jobs.beat("w1", job) == {job: "cancelled"}, "until it has stopped"

    def test_a_job_that_moved_on_is_lost_to_it(self, jobs: Jobs) -> None:
        job = jobs.running(worker="w1")
        jobs.rescue()
        jobs.run_again(job, "w2")
        assert jobs.beat("w1", job, "job_unknown") == {job: "lost", "job_unknown": "lost"}
        assert jobs.beat("w2", job) == {}

    def test_a_job_that_it_never_heard_of_is_queued_again(self, jobs: Jobs) -> None:
        job = jobs.running(worker="w1")
        jobs.beat("w1", forgotten_ms=-1)
        assert jobs.lane() == [job]
        error = jobs.record(job).attempts[0].error
        assert error is not None
        assert error["code"] == "forgotten"

    def test_but_not_while_the_claims_answer_may_be_on_its_way(self, jobs: Jobs) -> None:
        job = jobs.running(worker="w1")
        jobs.beat("w1")
        assert jobs.state(job) is JobState.RUNNING

    def test_saying_more_than_it_holds_hides_nothing(self, jobs: Jobs) -> None:
        known, unheard_of = jobs.running(worker="w1"), jobs.running(worker="w1")
        jobs.beat("w1", known, known, "job_lost", forgotten_ms=-1)
        assert jobs.state(known) is JobState.RUNNING
        assert jobs.state(unheard_of) is JobState.QUEUED

    def test_an_id_without_a_record_is_dropped(self, jobs: Jobs, store: Store) -> None:
        store.redis.sadd("fabric:held:w1", "job_gone")
        jobs.beat("w1", forgotten_ms=-1)
        assert jobs.members("held:w1") == set()


class TestHandBack:
    def test_a_worker_that_leaves_returns_its_jobs_and_is_gone(self, jobs: Jobs, store: Store) -> None:
        jobs.beat("w1")
        job = jobs.running(worker="w1")
        assert store(transitions.hand_back("w1")) == 1
        assert jobs.lane() == [job]
        error = jobs.record(job).attempts[0].error
        assert error is not None
        assert error["code"] == "handed_back"
        assert store.redis.keys("fabric:*w1") == []
        assert jobs.members("workers") == set()

    def test_nobody_died(self, jobs: Jobs, store: Store) -> None:
        job = jobs.queued()
        for _ in range(4):
            jobs.run_again(job, "w1")
            store(transitions.hand_back("w1"))
        assert jobs.state(job) is JobState.QUEUED

    def test_twice_is_once(self, jobs: Jobs, store: Store) -> None:
        jobs.running(worker="w1")
        assert [store(transitions.hand_back("w1")) for _ in range(2)] == [1, 0]

    def test_other_workers_keep_theirs(self, jobs: Jobs, store: Store) -> None:
        job = jobs.running(worker="w2")
        assert store(transitions.hand_back("w1")) == 0
        assert jobs.state(job) is JobState.RUNNING


class TestRescue:
    def test_jobs_of_a_dead_worker_go_back(self, jobs: Jobs, store: Store) -> None:
        jobs.beat("w1")
        job = jobs.running(worker="w1")
        assert jobs.rescue() == (1, 0)
        assert jobs.lane() == [job]
        error = jobs.record(job).attempts[0].error
        assert error is not None
        assert error["code"] == "worker_lost"
        assert store.redis.keys("fabric:*w1") == []
        assert jobs.rescue() == (0, 0)

    def test_its_late_commit_is_refused_and_counted(self, jobs: Jobs, store: Store) -> None:
        job = jobs.running(worker="w1")
        jobs.rescue()
        assert not jobs.commit(job)
        assert jobs.state(job) is JobState.QUEUED
        assert store(reads.fenced_count()) == 1

    def test_a_worker_that_beats_keeps_its_jobs(self, jobs: Jobs, store: Store) -> None:
        job = jobs.running(worker="w1")
        jobs.beat("w1", job)
        for _ in range(2):
            assert store(transitions.rescue(dead_after_ms=60_000)) == (0, 0)
        assert jobs.state(job) is JobState.RUNNING

    def test_a_worker_that_only_claimed_is_rescued_too(self, jobs: Jobs) -> None:
        job = jobs.running(worker="w1")
        assert jobs.rescue() == (1, 0)
        assert jobs.lane() == [job]

    def test_a_worker_taken_for_dead_can_come_back(self, jobs: Jobs) -> None:
        job = jobs.running(worker="w1")
        jobs.rescue()
        assert jobs.beat("w1", job) == {job: "lost"}
        jobs.run_again(job, "w1")
        assert jobs.beat("w1", job) == {}
        assert jobs.commit(job)

    def test_three_deaths_park_the_job(self, jobs: Jobs) -> None:
        job = jobs.queued()
        answers = []
        for worker in ("w1", "w2", "w3"):
            jobs.run_again(job, worker)
            answers.append(jobs.rescue())
        assert answers == [(1, 0), (1, 0), (0, 1)]
        record = jobs.record(job)
        assert record.state is JobState.DEAD
        assert record.error is not None
        assert record.error["code"] == "poison_job"
        assert [a.outcome for a in record.attempts] == ["requeued", "requeued", "dead"]
        assert jobs.places(job) == {"dead", "jobs:default"}

    def test_a_cancelled_job_is_not_parked(self, jobs: Jobs, store: Store) -> None:
        job = jobs.running(worker="w1")
        store(transitions.cancel([job]))
        assert jobs.rescue(deaths=1) == (1, 0)
        assert jobs.state(job) is JobState.CANCELLED

    def test_a_stream_that_has_spoken_ends_broken(self, jobs: Jobs, store: Store) -> None:
        job = jobs.running(worker="w1", stream=True)
        store(transitions.emit([Piece(job, 1, b'{"type":"token"}')]))
        jobs.rescue()
        record = jobs.record(job)
        assert record.state is JobState.FAILED
        assert record.error is not None
        assert record.error["code"] == "stream_broken"

    def test_no_more_than_asked_at_once(self, jobs: Jobs) -> None:
        mine = {jobs.running(worker="w1") for _ in range(3)}
        assert jobs.rescue(at_most=2) == (2, 0)
        assert jobs.members("workers") == {"w1"}
        assert jobs.rescue(at_most=2) == (1, 0)
        assert jobs.members("workers") == set()
        assert set(jobs.lane()) == mine

    def test_an_id_without_a_record_is_dropped(self, jobs: Jobs, store: Store) -> None:
        jobs.beat("w1")
        store.redis.sadd("fabric:held:w1", "job_gone")
        assert jobs.rescue() == (0, 0)
        assert jobs.members("held:w1") == set()


class TestRescueAfterAnOutage:
    """While the store is away nobody can beat. That is no death."""

    TERM_MS = 60_000

    def sweep(self, store: Store) -> tuple[int, int]:
        return store(transitions.rescue(dead_after_ms=self.TERM_MS))

    def beaten(self, store: Store, ago_ms: int) -> None:
        seconds, _ = store.redis.time()
        store.redis.zadd("fabric:workers", {"w1": seconds * 1000 - ago_ms})

    def swept(self, store: Store, *, last_ago_ms: int, since_ago_ms: int) -> None:
        seconds, _ = store.redis.time()
        now = seconds * 1000
        store.redis.hset("fabric:sweep", mapping={"last": now - last_ago_ms, "since": now - since_ago_ms})

    def test_the_first_sweep_after_it_calls_nobody_dead(self, jobs: Jobs, store: Store) -> None:
        job = jobs.running(worker="w1")
        self.beaten(store, ago_ms=90_000)
        self.swept(store, last_ago_ms=85_000, since_ago_ms=500_000)
        assert [self.sweep(store), self.sweep(store)] == [(0, 0), (0, 0)]
        assert jobs.state(job) is JobState.RUNNING

    def test_whoever_is_silent_for_a_whole_term_after_it_is_dead(self, jobs: Jobs, store: Store) -> None:
        job = jobs.running(worker="w1")
        self.beaten(store, ago_ms=90_000)
        self.swept(store, last_ago_ms=500, since_ago_ms=61_000)
        assert self.sweep(store) == (1, 0)
        assert jobs.lane() == [job]

    def test_a_clock_that_was_set_back_starts_a_new_term(self, jobs: Jobs, store: Store) -> None:
        jobs.running(worker="w1")
        self.beaten(store, ago_ms=90_000)
        self.swept(store, last_ago_ms=-3_600_000, since_ago_ms=-3_600_000)
        assert self.sweep(store) == (0, 0)
        seconds, _ = store.redis.time()
        assert abs(int(store.redis.hget("fabric:sweep", "since")) - seconds * 1000) < 5_000
