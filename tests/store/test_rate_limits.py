"""Rate limits: taken in the call that takes a job in, given back in the call that ends it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fabric.contracts.errors import RateLimited
from fabric.contracts.job import JobState, Measures, Usage
from fabric.store import Store, transitions
from fabric.store.transitions import Accepted, NewJob
from tests.store.conftest import Jobs

if TYPE_CHECKING:
    from tests.conftest import Valkey

#: No fault of its deployment: its breaker stays closed.
LATER = RateLimited("Later.").info
OWNER = "key:k"
RATE = "fabric:rate:key:k"
#: So much that nothing of it comes back within a test.
HUGE = 10**12


def takes(
    owner: str = OWNER,
    *,
    requests: int | None = None,
    tokens: tuple[int, int] | None = None,
    jobs: int | None = None,
    batch: tuple[int, int] | None = None,
) -> str:
    """``tokens`` and ``batch``: the limit, and what the job takes of it."""
    limits = (requests, tokens and tokens[0], jobs, batch and batch[0])
    amounts = (int(requests is not None), tokens[1] if tokens else 0, int(jobs is not None), batch[1] if batch else 0)
    return " ".join([owner, *("-" if limit is None else str(limit) for limit in limits), *map(str, amounts)])


def accept(jobs: Jobs, limits: str, **fields: Any) -> Accepted:
    (answer,) = jobs.accept(NewJob(jobs.spec(**fields), b"sealed", limits=limits))
    return answer


def running(jobs: Jobs, limits: str) -> str:
    accepted = accept(jobs, limits)
    assert accepted.verdict == "accepted"
    jobs.run_again(accepted.job_id)
    return accepted.job_id


def used(tokens: int) -> bytes:
    return Measures(engine_s=1, usage=Usage(tokens // 2, tokens - tokens // 2)).dump()


def counted(store: Store, key: str = RATE) -> tuple[int, int]:
    """Jobs and batch tokens that are under way."""
    found = store.redis.hmget(key, "jobs", "batch_tokens")
    return int(found[0] or 0), int(found[1] or 0)


def back_in_ms(store: Store, name: str = "tokens_at") -> float:
    seconds, micros = store.redis.time()
    return float(store.redis.hget(RATE, name)) - seconds * 1000 - micros / 1000


def test_a_minute_gives_as_many_requests_as_its_limit(jobs: Jobs) -> None:
    answers = [accept(jobs, takes(requests=3)) for _ in range(4)]
    assert [answer.verdict for answer in answers] == ["accepted"] * 3 + ["limited"]
    levels = [answer.levels.requests for answer in answers if answer.levels and answer.levels.requests]
    assert [level[:2] for level in levels] == [(3, 2), (3, 1), (3, 0), (3, 0)]
    by = answers[-1].limited_by
    assert by is not None
    assert (by.owner, by.kind, by.limit) == (OWNER, "requests", 3)
    assert 10_000 < by.wait_ms <= 20_000  # a third of a minute gives the next one
    assert len(jobs.lane()) == 3


def test_what_it_says_to_wait_is_enough(jobs: Jobs, store: Store) -> None:
    assert accept(jobs, takes(requests=1)).verdict == "accepted"
    by = accept(jobs, takes(requests=1)).limited_by
    assert by is not None
    store.redis.hincrbyfloat(RATE, "requests_at", -by.wait_ms)  # as if so much time had gone by
    assert accept(jobs, takes(requests=1)).verdict == "accepted"


def test_a_refused_job_takes_nothing_of_any_limit(jobs: Jobs, store: Store) -> None:
    two = takes(requests=9, tokens=(1_000, 600)) + "\n" + takes("tenant:t", requests=9, jobs=9)
    assert accept(jobs, two).verdict == "accepted"
    refused = accept(jobs, two)
    assert refused.limited_by is not None
    assert refused.limited_by.kind == "tokens"
    assert refused.levels is not None
    assert (refused.levels.requests or ())[:2] == (9, 8)
    assert counted(store, "fabric:rate:tenant:t") == (1, 0)


def test_the_tightest_limit_is_told(jobs: Jobs) -> None:
    answer = accept(jobs, takes(requests=9) + "\n" + takes("tenant:t", requests=4))
    assert answer.levels is not None
    assert (answer.levels.requests or ())[:2] == (4, 3)
    assert answer.levels.tokens is None


def test_a_job_without_limits_leaves_no_trace(jobs: Jobs, store: Store) -> None:
    assert accept(jobs, "").levels is None
    assert not store.redis.keys("fabric:rate:*")


@pytest.mark.parametrize(("actual", "left"), [(100, 900), (700, 300), (1_400, -400)])
def test_the_tokens_that_were_used_stand_in_for_the_estimate(jobs: Jobs, store: Store, actual: int, left: int) -> None:
    job = running(jobs, takes(tokens=(1_000, 600)))
    jobs.commit(job, measures=used(actual))
    # In milliseconds: one token of a thousand a minute is 60.
    assert back_in_ms(store) == pytest.approx((1_000 - left) * 60, abs=3_000)


def test_what_has_come_back_by_itself_is_not_given_back_again(jobs: Jobs, store: Store) -> None:
    job = running(jobs, takes(tokens=(1_000, 600)))
    # As if a minute and more had gone by, and another job had come meanwhile.
    store.redis.hset(RATE, "tokens_at", 0)
    store.redis.hset(f"fabric:job:{job}", "limits", f"{OWNER} 1000 600 0 0 1000")
    assert accept(jobs, takes(tokens=(1_000, 500))).verdict == "accepted"
    jobs.commit(job, measures=used(0))
    assert back_in_ms(store) > 25_000


def test_a_repeated_job_takes_nothing_more(jobs: Jobs, store: Store) -> None:
    job = NewJob(jobs.spec(), b"s", idempotency_key="k", fingerprint="f", limits=takes(jobs=5, requests=9))
    again = NewJob(jobs.spec(), b"s", idempotency_key="k", fingerprint="f", limits=takes(jobs=5, requests=9))
    answers = jobs.accept(job, again, job)
    assert [answer.verdict for answer in answers] == ["accepted", "exists", "exists"]
    assert counted(store) == (1, 0)
    assert all(answer.levels and (answer.levels.requests or ())[:2] == (9, 8) for answer in answers)


def test_what_nobody_uses_is_forgotten(jobs: Jobs, store: Store) -> None:
    job = running(jobs, takes(jobs=5))
    assert store.redis.ttl(RATE) == -1
    jobs.commit(job)
    assert store.redis.ttl(RATE) > 0


def test_a_store_that_lost_its_memory_counts_anew(jobs: Jobs, store: Store) -> None:
    """Jobs and what they take are lost together, and kept together."""
    running(jobs, takes(jobs=1))
    assert accept(jobs, takes(jobs=1)).verdict == "limited"
    store.redis.flushall()
    assert accept(jobs, takes(jobs=1)).verdict == "accepted"
    assert counted(store) == (1, 0)


@dataclass
class Held:
    jobs: int
    batch: int


class History(RuleBasedStateMachine):
    """Whatever happens to jobs: what is counted is what the living take, to the last one."""

    MOST, ENQUEUED = 5, 1_000
    store: Store

    @initialize()
    def begin(self) -> None:
        self.store.redis.flushall()
        self.jobs = Jobs(self.store)
        self.live: dict[str, Held] = {}
        self.parked: dict[str, Held] = {}

    def now(self) -> tuple[int, int]:
        held = list(self.live.values())
        return sum(h.jobs for h in held), sum(h.batch for h in held)

    def any_live(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self.live)))

    @rule()
    def submit(self) -> None:
        answer = accept(self.jobs, takes(jobs=self.MOST, tokens=(HUGE, 10), requests=HUGE))
        fits = self.now()[0] + 1 <= self.MOST
        assert answer.verdict == ("accepted" if fits else "limited")
        if fits:
            self.live[answer.job_id] = Held(1, 0)

    @rule(tokens=st.integers(1, 400))
    def enqueue(self, tokens: int) -> None:
        limits = takes(batch=(self.ENQUEUED, tokens))
        spec = self.jobs.spec(batch_id="batch_1", priority="batch")
        answers = self.jobs.accept(NewJob(spec, b"s", limits=limits), NewJob(spec, b"s", limits=limits))
        fits = self.now()[1] + tokens <= self.ENQUEUED
        assert [a.verdict for a in answers] == (["accepted", "exists"] if fits else ["limited", "limited"])
        if fits:
            self.live[spec.id] = Held(0, tokens)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), state=st.sampled_from([*(s for s in JobState if s.ended)]), twice=st.booleans())
    def end(self, data: st.DataObject, state: JobState, twice: bool) -> None:
        job = self.any_live(data)
        self.jobs.run_again(job)
        assert self.jobs.commit(job, state, measures=used(7))
        if twice:
            assert not self.jobs.commit(job, state, measures=used(7))
        held = self.live.pop(job)
        if state is JobState.DEAD:
            self.parked[job] = held

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def fail_once(self, data: st.DataObject) -> None:
        job = self.any_live(data)
        self.jobs.run_again(job)
        assert self.jobs.fail(job, action="wait", error=LATER, measures=used(3)) == "queued"

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job = self.any_live(data)
        self.store(transitions.cancel([job]))
        self.store(transitions.cancel([job]))
        self.live.pop(job)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        job = self.any_live(data)
        self.store.redis.zadd("fabric:deadlines", {job: 1})
        self.store(transitions.expire())
        self.live.pop(job)

    @precondition(lambda self: self.parked)
    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(sorted(self.parked)))
        assert self.store(transitions.replay([job])) == ["queued"]
        self.live[job] = self.parked.pop(job)

    @precondition(lambda self: self.parked)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(sorted(self.parked)))
        assert self.store(transitions.drop([job])) == [1]
        self.parked.pop(job)

    @invariant()
    def adds_up(self) -> None:
        if hasattr(self, "jobs"):
            assert counted(self.store) == self.now()


def test_nothing_leaks_whatever_happens(valkey: Valkey, store: Store) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    History.store = store
    run_state_machine_as_test(
        History,
        settings=settings(
            max_examples=30, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
