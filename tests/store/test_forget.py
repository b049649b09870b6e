"""What an ended job leaves, for how long, and that nothing is left for ever."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fabric.contracts.job import JobState
from fabric.store import Store, reads, transitions
from fabric.store.transitions import NewJob, Piece

if TYPE_CHECKING:
    from tests.store.conftest import Jobs


class TestExpiry:
    def test_an_ended_job_waits_a_day_for_the_ledger(self, jobs: Jobs, store: Store) -> None:
        committed, cancelled, rejected = jobs.ended(), jobs.queued(), jobs.taken()
        late = jobs.queued(deadline_ms=1)
        store(transitions.cancel([cancelled]))
        jobs.reject(rejected)
        store(transitions.expire())
        for job in (committed, cancelled, rejected, late):
            for key in (f"job:{job}", f"events:{job}"):
                assert 86_395 < jobs.ttl_s(key) <= transitions.UNRECORDED_TTL_S

    def test_once_the_ledger_has_it_it_stays_readable_for_an_hour(self, jobs: Jobs, store: Store) -> None:
        job = jobs.ended()
        assert store(transitions.forget([job])) == 1
        for key in (f"job:{job}", f"events:{job}"):
            assert 3_595 < jobs.ttl_s(key) <= transitions.RECORD_TTL_S
        assert jobs.record(job).result == b"{}"

    def test_a_commit_may_choose_another_time(self, jobs: Jobs, store: Store) -> None:
        job = jobs.running()
        store(transitions.commit([transitions.Outcome(job, 1, JobState.SUCCEEDED)], ttl_s=10))
        assert 5 < jobs.ttl_s(f"job:{job}") <= 10


class TestForget:
    def test_the_job_leaves_the_list_of_open_jobs(self, jobs: Jobs, store: Store) -> None:
        first, second = jobs.ended(), jobs.queued()
        assert set(store(reads.open_jobs("default", before_ms=None, limit=10))) == {first, second}
        store(transitions.forget([first]))
        assert store(reads.open_jobs("default", before_ms=None, limit=10)) == [second]

    def test_a_batch_line_leaves_nothing(self, jobs: Jobs, store: Store) -> None:
        job = jobs.quiet()
        jobs.run_again(job)
        jobs.commit(job)
        store(transitions.forget([job]))
        assert store.redis.keys(f"fabric:*{job}") == []

    def test_jobs_that_have_not_ended_stay(self, jobs: Jobs, store: Store) -> None:
        unended = [jobs.queued(), jobs.taken(), jobs.dispatched(), jobs.running(), jobs.dead()]
        assert store(transitions.forget([*unended, "job_unknown"])) == 0
        assert all(jobs.places(job) for job in unended)

    def test_a_parked_line_that_was_replayed_before_the_ledger_saw_it_stays(self, jobs: Jobs, store: Store) -> None:
        job = jobs.taken(batch_id="batch_1", priority="batch")
        jobs.reject(job, JobState.DEAD)
        store(transitions.replay([job]))
        assert store(transitions.forget([job])) == 0
        jobs.run_again(job)
        assert jobs.commit(job)

    def test_nobody_has_to_look_at_a_line_that_is_known_to_have_ended(self, jobs: Jobs, store: Store) -> None:
        lines = [jobs.quiet() for _ in range(3)]
        for job in lines:
            jobs.run_again(job)
            jobs.commit(job)
        other, running = jobs.ended(), jobs.running()
        assert store(transitions.forget([other, running], lines)) == 4
        assert [job for job in lines if store.redis.keys(f"fabric:*{job}")] == []
        assert jobs.places(running)

    def test_twice_is_once(self, jobs: Jobs, store: Store) -> None:
        line = jobs.quiet()
        jobs.run_again(line)
        jobs.commit(line)
        assert [store(transitions.forget([line])) for _ in range(2)] == [1, 0]


def test_after_all_jobs_ended_only_a_bounded_set_of_keys_is_left(jobs: Jobs, store: Store) -> None:
    """No key and no index grows with the number of jobs: only records that expire are left."""

    def a_round() -> None:
        ended = [jobs.ended(), jobs.ended(JobState.FAILED), jobs.ended(batch_id="b", priority="batch")]
        ended += [jobs.taken(), jobs.taken(deadline_ms=4_000_000_000_000)]
        for job in ended[3:]:
            jobs.reject(job)
        expired, cancelled, running = jobs.queued(deadline_ms=1), jobs.dispatched(), jobs.running(worker="w2")
        store(transitions.expire())
        jobs.beat("w2", running)
        store(transitions.cancel([cancelled, running]))
        jobs.commit(running, JobState.CANCELLED)
        retried, rescued, returned = jobs.running(worker="w3"), jobs.running(worker="w4"), jobs.running(worker="w5")
        jobs.fail(retried, delay_ms=60_000)
        store.redis.zadd("fabric:delayed", {retried: 0})
        store(transitions.promote())
        jobs.rescue()
        store(transitions.hand_back("w5"))
        for job in (retried, rescued, returned):
            jobs.run_again(job)
            store(transitions.emit([Piece(job, jobs.attempts[job], b"{}")]))
            jobs.commit(job)
        parked = jobs.dead(deadline_ms=4_000_000_000_000)
        store(transitions.replay([parked]))
        store(transitions.watch(parked, "fabric:gateway:g"))
        jobs.run_again(parked)
        jobs.commit(parked)
        jobs.accept(NewJob(jobs.spec(), b"p", idempotency_key="k", fingerprint="f"), limit=0)
        gone = [expired, cancelled, running, retried, rescued, returned, parked]
        assert store(transitions.forget(ended + gone)) == len(ended + gone)
        store(transitions.hand_back("w1"))
        store(transitions.room())

    def what_is_left() -> dict[str, int]:
        """Keys that stay, with the number of their members. The recorder trims the completions itself."""
        left = {}
        for key in store.redis.keys("fabric:*"):
            if store.redis.pttl(key) == -1 and key != reads.COMPLETIONS.encode():
                kind = store.redis.type(key)
                size = {b"zset": "ZCARD", b"set": "SCARD", b"list": "LLEN", b"hash": "HLEN", b"string": "STRLEN"}[kind]
                left[key.decode()] = store.redis.execute_command(size, key)
        return left

    a_round()
    first = what_is_left()
    a_round()
    a_round()
    assert what_is_left() == first
    assert set(first) <= {"fabric:experience", "fabric:health", "fabric:pace", "fabric:wake", "fabric:sweep"}
