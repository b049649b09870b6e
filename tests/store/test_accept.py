"""``accept``: a job enters whole or not at all."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from fabric.contracts.errors import Unavailable
from fabric.contracts.job import DUE_MS, JobState, Priority
from fabric.store import Store, reads, transitions
from fabric.store.transitions import NewJob

if TYPE_CHECKING:
    from tests.conftest import Valkey
    from tests.store.conftest import Jobs


def test_an_accepted_job_waits_in_its_lane(jobs: Jobs) -> None:
    job = jobs.queued(tenant="acme", priority="standard")
    assert jobs.state(job) is JobState.QUEUED
    assert jobs.places(job) == {"lane:standard|acme|small", "live", "jobs:acme"}


def test_the_record_says_what_was_asked(jobs: Jobs) -> None:
    spec = jobs.spec(tags=("a", "b"), deadline_ms=4_000_000_000_000, max_cost_usd=0.5)
    jobs.accept(NewJob(spec, b"sealed"))
    record = jobs.record(spec.id)
    assert record.spec == spec
    assert record.attempts == ()
    assert record.finished_ms is None
    assert record.result is None


def test_the_payload_is_kept_as_it_came(jobs: Jobs, store: Store) -> None:
    payload = bytes(range(256))
    job = jobs.queued(payload=payload)
    assert store(reads.payload(job)) == payload


def test_a_batch_line_is_not_in_the_list_of_open_jobs(jobs: Jobs) -> None:
    job = jobs.quiet()
    assert jobs.places(job) == {"lane:batch|default|small", "live"}


def test_nothing_in_the_backlog_expires(jobs: Jobs) -> None:
    job = jobs.queued(deadline_ms=4_000_000_000_000)
    assert {jobs.ttl_s(key) for key in (f"job:{job}", f"payload:{job}", f"events:{job}")} == {-1}


@pytest.mark.parametrize("priority", ["interactive", "standard", "batch"])
def test_a_job_is_due_when_its_class_says(jobs: Jobs, store: Store, priority: Priority) -> None:
    job = jobs.queued(priority=priority)
    due = store.redis.zscore(f"fabric:lane:{priority}|default|small", job)
    assert due == jobs.record(job).accepted_ms + DUE_MS[priority]


def test_a_deadline_before_that_makes_it_due_earlier(jobs: Jobs, store: Store) -> None:
    deadline = int(time.time() * 1000) + 500
    job = jobs.queued(deadline_ms=deadline)
    assert store.redis.zscore("fabric:lane:interactive|default|small", job) == deadline
    assert store.redis.zscore("fabric:deadlines", job) == deadline


def test_a_deadline_after_that_doesnt_make_it_wait_longer(jobs: Jobs, store: Store) -> None:
    job = jobs.queued(deadline_ms=4_000_000_000_000)
    due = store.redis.zscore("fabric:lane:interactive|default|small", job)
    assert due == jobs.record(job).accepted_ms + DUE_MS["interactive"]


def test_a_scheduler_is_woken_once(jobs: Jobs, store: Store) -> None:
    for _ in range(3):
        jobs.queued()
    assert store.redis.lrange(reads.WAKE, 0, -1) == [b"1"]


def test_a_known_id_is_not_accepted_twice(jobs: Jobs) -> None:
    spec = jobs.spec()
    verdicts = [jobs.accept(NewJob(spec, b"p"))[0].verdict for _ in range(2)]
    assert verdicts == ["accepted", "exists"]
    assert jobs.lane() == [spec.id]


def test_the_same_id_twice_in_a_call_makes_one_job(jobs: Jobs) -> None:
    spec = jobs.spec()
    answers = jobs.accept(NewJob(spec, b"p"), NewJob(spec, b"p"))
    assert [a.verdict for a in answers] == ["accepted", "exists"]


def test_an_ended_job_is_not_accepted_again_while_its_record_is_there(jobs: Jobs) -> None:
    job = jobs.ended()
    (answer,) = jobs.accept(NewJob(jobs.spec(id=job), b"p"))
    assert answer.verdict == "exists"
    assert jobs.state(job) is JobState.SUCCEEDED


class TestIdempotencyKey:
    def test_the_same_request_gets_the_earlier_job(self, jobs: Jobs) -> None:
        first = NewJob(jobs.spec(), b"p", idempotency_key="k", fingerprint="f")
        again = NewJob(jobs.spec(), b"p", idempotency_key="k", fingerprint="f")
        jobs.accept(first)
        (answer,) = jobs.accept(again)
        assert (answer.verdict, answer.job_id) == ("exists", first.spec.id)
        assert jobs.state(again.spec.id) is None

    def test_another_request_is_a_conflict(self, jobs: Jobs) -> None:
        first = NewJob(jobs.spec(), b"p", idempotency_key="k", fingerprint="f")
        other = NewJob(jobs.spec(), b"p", idempotency_key="k", fingerprint="g")
        jobs.accept(first)
        (answer,) = jobs.accept(other)
        assert (answer.verdict, answer.job_id) == ("conflict", first.spec.id)
        assert jobs.state(other.spec.id) is None

    def test_another_tenant_has_its_own_keys(self, jobs: Jobs) -> None:
        answers = jobs.accept(
            NewJob(jobs.spec(tenant="a"), b"p", idempotency_key="k", fingerprint="f"),
            NewJob(jobs.spec(tenant="b"), b"p", idempotency_key="k", fingerprint="f"),
        )
        assert [a.verdict for a in answers] == ["accepted", "accepted"]

    def test_a_tenant_cannot_spell_its_way_into_another_tenants_keys(self, jobs: Jobs) -> None:
        answers = jobs.accept(
            NewJob(jobs.spec(tenant="a"), b"p", idempotency_key="b:k", fingerprint="f"),
            NewJob(jobs.spec(tenant="a:b"), b"p", idempotency_key="k", fingerprint="f"),
        )
        assert [a.verdict for a in answers] == ["accepted", "accepted"]

    def test_it_outlives_the_job(self, jobs: Jobs) -> None:
        new = NewJob(jobs.spec(), b"p", idempotency_key="k", fingerprint="f")
        jobs.accept(new)
        jobs.store(transitions.cancel([new.spec.id]))
        (answer,) = jobs.accept(NewJob(jobs.spec(), b"p", idempotency_key="k", fingerprint="f"))
        assert (answer.verdict, answer.job_id) == ("exists", new.spec.id)

    def test_it_is_forgotten_after_a_day(self, jobs: Jobs, store: Store) -> None:
        jobs.accept(NewJob(jobs.spec(), b"p", idempotency_key="k", fingerprint="f"))
        (key,) = store.redis.keys("fabric:idempotency:*")
        assert transitions.IDEMPOTENCY_S - 5 < jobs.ttl_s(key.decode().removeprefix("fabric:")) <= 86_400

    def test_a_refused_job_leaves_its_key_free(self, jobs: Jobs) -> None:
        refused = NewJob(jobs.spec(), b"p", idempotency_key="k", fingerprint="f")
        assert jobs.accept(refused, limit=0)[0].verdict == "full"
        assert jobs.accept(refused)[0].verdict == "accepted"

    def test_of_many_at_once_one_becomes_a_job(self, valkey: Valkey, jobs: Jobs) -> None:
        def submit(_: int) -> tuple[str, str]:
            store = Store(valkey.url)
            try:
                new = NewJob(jobs.spec(), b"p", idempotency_key="k", fingerprint="f")
                (answer,) = store(transitions.accept([new]))
                return answer.verdict, answer.job_id
            finally:
                store.close()

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(submit, range(40)))
        assert sorted(verdict for verdict, _ in answers) == ["accepted"] + ["exists"] * 39
        assert {job for _, job in answers} == set(jobs.lane())


class TestLimit:
    def test_beyond_it_jobs_are_refused_and_leave_no_trace(self, jobs: Jobs, store: Store) -> None:
        first, second = NewJob(jobs.spec(), b"p"), NewJob(jobs.spec(deadline_ms=4_000_000_000_000), b"p")
        answers = jobs.accept(first, second, limit=1)
        assert [a.verdict for a in answers] == ["accepted", "full"]
        assert jobs.places(second.spec.id) == set()
        assert store.redis.keys(f"fabric:*{second.spec.id}") == []

    def test_a_job_that_ended_makes_room(self, jobs: Jobs) -> None:
        jobs.ended()
        assert jobs.accept(NewJob(jobs.spec(), b"p"), limit=1)[0].verdict == "accepted"

    def test_an_earlier_job_is_found_even_when_full(self, jobs: Jobs) -> None:
        new = NewJob(jobs.spec(), b"p", idempotency_key="k", fingerprint="f")
        jobs.accept(new, limit=1)
        assert jobs.accept(new, limit=1)[0].verdict == "exists"


def test_a_redis_without_memory_refuses_new_jobs_and_lets_others_end(jobs: Jobs, store: Store) -> None:
    running = jobs.running()
    store.redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(Unavailable, match="memory"):
            jobs.queued()
        assert jobs.commit(running)
    finally:
        store.redis.config_set("maxmemory", 0)
    assert jobs.places(running) == {"jobs:default"}
    assert jobs.lane() == []
