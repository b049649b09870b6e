"""``room``, ``take``, ``put_back``, ``promote``, ``reclaim``: the backlog and what schedulers hold of it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fabric.contracts.job import JobState
from fabric.contracts.worker import WorkerInfo
from fabric.store import Store, reads, transitions
from fabric.store.transitions import Lane, NewJob

if TYPE_CHECKING:
    from tests.store.conftest import Jobs


class TestRoom:
    def test_an_empty_store_has_nothing(self, store: Store) -> None:
        room = store(transitions.room())
        assert (room.lanes, room.busy, room.workers) == ((), {}, ())

    def test_it_shows_the_lanes_and_when_their_heads_are_due(self, jobs: Jobs, store: Store) -> None:
        first = jobs.queued(tenant="acme", model="org/a:b|c")
        jobs.queued(tenant="acme", model="org/a:b|c")
        due = jobs.record(first).accepted_ms + 2_000
        (lane,) = store(transitions.room()).lanes
        assert lane == Lane("interactive|acme|org/a:b|c", "interactive", "acme", "org/a:b|c", 2, due)

    def test_a_lane_that_ran_empty_is_gone(self, jobs: Jobs, store: Store) -> None:
        job = jobs.queued()
        store(transitions.cancel([job]))
        assert store(transitions.room()).lanes == ()
        assert jobs.members("lanes") == set()

    def test_it_shows_who_is_there_and_how_busy_their_deployments_are(self, jobs: Jobs, store: Store) -> None:
        jobs.beat("w1")
        jobs.dispatched()
        jobs.running()
        room = store(transitions.room())
        assert [w.id for w in room.workers] == ["w1"]
        assert room.busy == {"small-cpu": 2}

    def test_a_worker_that_stopped_beating_is_not_there(self, jobs: Jobs, store: Store) -> None:
        jobs.beat("w1")
        assert store(transitions.room(alive_ms=-1)).workers == ()

    def test_a_worker_that_claimed_before_its_first_beat_is_left_out(self, jobs: Jobs, store: Store) -> None:
        jobs.running(worker="w1")
        assert store(transitions.room()).workers == ()

    def test_a_worker_without_deployments_is_no_trouble(self, jobs: Jobs, store: Store) -> None:
        info = WorkerInfo("w1", "cpu", "host", 1, 0, {}, {}, {})
        store(transitions.heartbeat(info, []))
        assert [w.id for w in store(transitions.room()).workers] == ["w1"]


class TestTake:
    def test_it_hands_out_what_a_decision_needs(self, jobs: Jobs, store: Store) -> None:
        spec = jobs.spec(privacy="restricted", prompt_tokens=12)
        jobs.accept(NewJob(spec, b"p"))
        (taken,) = store(transitions.take([(spec.lane, 1)]))
        assert taken.spec == spec
        assert (taken.attempts, taken.history) == (0, b"")
        assert abs(taken.now_ms - jobs.record(spec.id).accepted_ms) < 5_000

    def test_a_taken_job_is_nobody_elses(self, jobs: Jobs) -> None:
        job = jobs.taken()
        assert jobs.places(job) == {"taken", "live", "jobs:default"}
        assert jobs.take() == []
        assert jobs.state(job) is JobState.QUEUED

    def test_the_first_due_goes_first(self, jobs: Jobs) -> None:
        now = int(time.time() * 1000)
        last = jobs.queued()
        first = jobs.queued(deadline_ms=now + 100)
        second = jobs.queued(deadline_ms=now + 200)
        assert jobs.take(3) == [first, second, last]

    def test_it_takes_as_many_as_asked_lane_by_lane(self, jobs: Jobs, store: Store) -> None:
        for tenant in ("a", "a", "a", "b"):
            jobs.queued(tenant=tenant)
        taken = store(transitions.take([("interactive|a|small", 2), ("interactive|b|small", 5), ("no|such|lane", 1)]))
        assert [job.spec.tenant for job in taken] == ["a", "a", "b"]

    def test_a_later_try_comes_with_its_history(self, jobs: Jobs, store: Store) -> None:
        job = jobs.running()
        jobs.fail(job)
        (taken,) = store(transitions.take([("interactive|default|small", 1)]))
        assert taken.attempts == 1
        assert taken.history.startswith(b'{"number":1,')

    def test_an_id_without_a_record_is_dropped(self, jobs: Jobs, store: Store) -> None:
        store.redis.zadd("fabric:lane:interactive|default|small", {"job_gone": 1})
        job = jobs.queued()
        assert jobs.take(2) == [job]
        assert jobs.members("taken") == {job}


class TestPutBack:
    def test_the_job_gets_its_place_again(self, jobs: Jobs, store: Store) -> None:
        first, second = jobs.queued(), jobs.queued()
        jobs.take()
        assert store(transitions.put_back([first])) == 1
        assert jobs.lane() == [first, second]
        assert jobs.places(first) == {"lane:interactive|default|small", "live", "jobs:default"}

    def test_twice_is_once(self, jobs: Jobs, store: Store) -> None:
        job = jobs.taken()
        assert [store(transitions.put_back([job])) for _ in range(2)] == [1, 0]

    def test_only_taken_jobs_move(self, jobs: Jobs, store: Store) -> None:
        sent, ended = jobs.dispatched(), jobs.ended()
        assert store(transitions.put_back([sent, ended, "job_unknown"])) == 0
        assert jobs.lane() == []


class TestPutAside:
    def test_the_job_waits_in_a_side_lane_for_the_places_it_may_run(self, jobs: Jobs, store: Store) -> None:
        other, job = jobs.queued(), jobs.queued()
        jobs.take(2)
        store(transitions.put_back([other]))
        side = transitions.side_lane(jobs.record(job).spec, "a1b2:small-gpu,small-cloud")
        assert store(transitions.put_aside([(job, side)])) == 1
        assert jobs.lane() == [other]
        assert jobs.lane(side) == [job]
        main, aside = sorted(store(transitions.room()).lanes, key=lambda lane: lane.places)
        assert (main.places, aside.places) == ("", "a1b2:small-gpu,small-cloud")
        assert (aside.priority, aside.tenant, aside.model) == (main.priority, main.tenant, main.model)
        assert jobs.record(job).lane == side, "that is where its position is counted"

    def test_it_keeps_its_due_time(self, jobs: Jobs, store: Store) -> None:
        job = jobs.taken()
        due = jobs.record(job).accepted_ms + 2_000
        side = transitions.side_lane(jobs.record(job).spec, "a1b2:small-gpu")
        store(transitions.put_aside([(job, side)]))
        assert [lane.due_ms for lane in store(transitions.room()).lanes] == [due]

    def test_from_there_it_is_taken_cancelled_and_tried_again_as_from_any_lane(self, jobs: Jobs, store: Store) -> None:
        job, cancelled = jobs.queued(), jobs.queued()
        jobs.take(2)
        side = transitions.side_lane(jobs.record(job).spec, "a1b2:small-gpu")
        store(transitions.put_aside([(job, side), (cancelled, side)]))
        store(transitions.cancel([cancelled]))
        assert jobs.take(2, side) == [job]
        assert jobs.send(job)
        assert jobs.claim(job)
        assert jobs.fail(job) == "queued"
        assert jobs.lane(side) == [job]

    def test_only_taken_jobs_move(self, jobs: Jobs, store: Store) -> None:
        sent, waiting = jobs.dispatched(tenant="b"), jobs.queued()
        assert store(transitions.put_aside([(sent, "elsewhere"), (waiting, "elsewhere")])) == 0
        assert jobs.lane() == [waiting]


class TestLease:
    def test_jobs_of_a_scheduler_that_died_with_them_in_hand_go_back(self, jobs: Jobs, store: Store) -> None:
        job = jobs.taken(lease_ms=-1)
        assert store(transitions.reclaim()) == (0, 1)
        assert jobs.lane() == [job]
        assert store(transitions.reclaim()) == (0, 0)

    def test_a_lease_that_runs_is_left_alone(self, jobs: Jobs, store: Store) -> None:
        jobs.taken()
        assert store(transitions.reclaim()) == (0, 0)

    def test_a_scheduler_that_comes_back_late_sends_nothing(self, jobs: Jobs, store: Store) -> None:
        job = jobs.taken(lease_ms=-1)
        store(transitions.reclaim())
        assert jobs.send(job) == 0
        assert jobs.reject(job) == 0
        assert store(transitions.put_back([job])) == 0
        assert jobs.lane() == [job]

    def test_of_two_schedulers_with_the_same_job_one_sends_it(self, jobs: Jobs, store: Store) -> None:
        job = jobs.taken(lease_ms=-1)
        store(transitions.reclaim())
        assert jobs.take() == [job]
        assert [jobs.send(job), jobs.send(job)] == [1, 0]

    def test_no_more_than_asked_at_once(self, jobs: Jobs, store: Store) -> None:
        for _ in range(3):
            jobs.queued()
        jobs.take(3, lease_ms=-1)
        assert [store(transitions.reclaim(at_most=2)) for _ in range(2)] == [(0, 2), (0, 1)]


class TestDelay:
    def test_a_retry_waits_for_its_time(self, jobs: Jobs, store: Store) -> None:
        job = jobs.running()
        assert jobs.fail(job, delay_ms=60_000) == "queued"
        assert jobs.places(job) == {"delayed", "live", "jobs:default"}
        assert store(transitions.promote()) == 0
        assert jobs.lane() == []

    def test_when_it_is_over_the_job_lines_up_where_it_was(self, jobs: Jobs, store: Store) -> None:
        job = jobs.running()
        jobs.fail(job, delay_ms=60_000)
        later = jobs.queued()
        store.redis.zadd("fabric:delayed", {job: 0})
        assert store(transitions.promote()) == 1
        assert jobs.lane() == [job, later]
        assert store(transitions.promote()) == 0

    def test_no_more_than_asked_at_once(self, jobs: Jobs, store: Store) -> None:
        delayed = [jobs.running() for _ in range(3)]
        for job in delayed:
            jobs.fail(job, delay_ms=60_000)
        store.redis.zadd("fabric:delayed", dict.fromkeys(delayed, 0))
        assert [store(transitions.promote(at_most=2)) for _ in range(2)] == [2, 1]

    def test_an_id_without_a_record_is_dropped(self, jobs: Jobs, store: Store) -> None:
        store.redis.zadd("fabric:delayed", {"job_gone": 0})
        assert store(transitions.promote()) == 0
        assert jobs.members("delayed") == set()


def test_a_scheduler_is_woken_when_work_or_room_appears(jobs: Jobs, store: Store) -> None:
    def woken() -> bool:
        return store.redis.rpop(reads.WAKE) is not None

    job = jobs.queued()
    assert woken()
    jobs.take(lease_ms=-1)
    store(transitions.reclaim())
    assert woken()
    jobs.queued()
    woken()
    jobs.take()
    jobs.send(job)
    jobs.claim(job)
    jobs.commit(job)
    assert woken(), "a slot is free and jobs wait"
    jobs.beat("w1")
    assert woken(), "a worker has come"
    jobs.beat("w1")
    assert not woken(), "nothing new"


def test_a_position_is_the_rank_in_the_lane(jobs: Jobs, store: Store) -> None:
    first, second = jobs.queued(), jobs.queued()
    assert [store(reads.rank("interactive|default|small", job)) for job in (first, second, "no")] == [0, 1, None]
