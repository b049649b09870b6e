"""A job that is out of tries at its deployment: its tier's dead-letter queue, and what becomes of it there."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import orjson
import pytest

from fabric.contracts.errors import ContextOverflow, EngineError
from fabric.contracts.failures import NEW, Chain
from fabric.contracts.job import JobState, Measures, Usage
from fabric.store import Store, reads, transitions
from fabric.store.transitions import Piece, Rejection, Taken, dead_queue

if TYPE_CHECKING:
    from tests.store.conftest import Jobs

TOOK = Measures(engine_s=1.0, usage=Usage(10, 5), cost_usd=0.25).dump()


def drain(store: Store, tier: str = "cpu") -> list[Taken]:
    return store(transitions.take([(dead_queue(tier), 100)], lease_ms=60_000))


def test_it_waits_there_as_a_queued_job_with_its_attempt(jobs: Jobs, store: Store) -> None:
    job = jobs.running()
    assert jobs.leave(job) == "moving"
    assert jobs.places(job) == {"dlq:cpu", "jobs:default", "live"}
    assert store(transitions.room()).dead == {"cpu": 1}
    record = jobs.record(job)
    assert record.state is JobState.QUEUED
    (attempt,) = record.attempts
    assert (attempt.outcome, attempt.deployment, (attempt.error or {})["code"]) == (
        *("exhausted", "small-cpu"),
        "engine_error",
    )
    assert jobs.event_types(job)[-1] == "requeued"
    assert jobs.completions() == []


def test_the_scheduler_gets_it_with_what_is_left_of_its_choices(jobs: Jobs, store: Store) -> None:
    job = jobs.running()
    jobs.leave(job, measures=TOOK, cost_usd=0.25)
    (taken,) = drain(store)
    assert (taken.lane, taken.spec.id) == ("dlq:cpu", job)
    assert taken.chain == Chain((("small-cpu", "engine_error"),), 0.25)
    assert orjson.loads(taken.error)["code"] == "engine_error"
    assert jobs.places(job) == {"taken", "jobs:default", "live"}
    assert drain(store) == []
    assert store(transitions.room()).dead == {}


def test_a_new_job_has_all_its_choices(jobs: Jobs, store: Store) -> None:
    jobs.queued()
    (taken,) = store(transitions.take([("interactive|default|small", 1)]))
    assert taken.chain is NEW


def test_its_next_attempt_goes_on_with_the_history(jobs: Jobs, store: Store) -> None:
    job = jobs.taken()
    jobs.send(job, decision=b'{"policy":"first","policy_hash":"h"}')
    jobs.claim(job)
    jobs.fail(job, measures=TOOK, cost_usd=0.25)
    jobs.run_again(job)
    jobs.leave(job, measures=TOOK, cost_usd=0.25)
    drain(store)
    assert jobs.send(job, "small-gpu", decision=b'{"policy":"second","policy_hash":"h"}') == 3
    jobs.claim(job, "w2")
    jobs.commit(job)
    assert store(reads.fallbacks()) == {("cpu", "gpu", "engine_error"): 1}
    tried = [(a.number, a.deployment, a.worker, a.outcome) for a in jobs.record(job).attempts]
    assert tried == [
        (1, "small-cpu", "w1", "requeued"),
        (2, "small-cpu", "w1", "exhausted"),
        (3, "small-gpu", "w2", "succeeded"),
    ]
    decisions = [(a.decision or {}).get("policy") for a in jobs.record(job).attempts]
    assert decisions == ["first", None, "second"]
    (end,) = jobs.completions(job)
    assert [(a.number, a.outcome, a.measures.cost_usd) for a in end.earlier] == [
        (1, "requeued", 0.25),
        (2, "exhausted", 0.25),
    ]


def test_tries_are_counted_for_each_deployment(jobs: Jobs, store: Store) -> None:
    job = jobs.running()
    for deployment, expected in (("small-cpu", 1), ("small-gpu", 0), ("small-gpu", 1)):
        jobs.fail(job)
        jobs.take()
        jobs.send(job, deployment)
        (claimed,) = store(transitions.claim("w1", [(job, jobs.attempts[job])]))
        assert claimed.failures == expected


def test_one_with_no_place_left_ends_as_its_last_attempt(jobs: Jobs, store: Store) -> None:
    job = jobs.taken()
    jobs.send(job, decision=b'{"policy":"first"}')
    jobs.claim(job)
    jobs.leave(job, measures=TOOK, cost_usd=0.25)
    drain(store)
    error = EngineError("no other place").info
    assert store(transitions.reject([Rejection(job, JobState.DEAD, error, b'{"policy":"last"}')])) == 1
    (end,) = jobs.completions(job)
    assert (end.state, end.attempt, end.deployment, end.tier, end.worker) == ("dead", 1, "small-cpu", "cpu", "w1")
    assert (end.measures.cost_usd, end.earlier) == (0.25, ())
    record = jobs.record(job)
    (attempt,) = record.attempts
    assert (attempt.outcome, attempt.decision, record.decision) == ("dead", {"policy": "first"}, {"policy": "last"})
    assert jobs.places(job) == {"dead", "jobs:default"}


def test_replayed_it_starts_fresh_with_its_history(jobs: Jobs, store: Store) -> None:
    job = jobs.running()
    jobs.fail(job, cost_usd=0.5)
    jobs.run_again(job)
    jobs.leave(job, measures=TOOK, cost_usd=0.25)
    drain(store)
    store(transitions.reject([Rejection(job, JobState.DEAD, EngineError("no").info, b"{}")]))
    spec = jobs.record(job).spec
    assert store(transitions.replay([job])) == ["queued"]
    (taken,) = store(transitions.take([(spec.lane, 1)]))
    assert taken.chain is NEW
    jobs.send(job)
    (claimed,) = store(transitions.claim("w1", [(job, 3)]))
    assert claimed.failures == 0
    assert [a.outcome for a in jobs.record(job).attempts] == ["requeued", "dead", "running"]


def test_a_cancelled_one_ends_there_and_is_charged(jobs: Jobs, store: Store) -> None:
    job = jobs.running()
    jobs.leave(job, measures=TOOK, cost_usd=0.25)
    assert store(transitions.cancel([job])) == ["cancelled"]
    assert jobs.places(job) == {"jobs:default"}
    (end,) = jobs.completions(job)
    assert (end.state, end.deployment, end.measures.cost_usd) == ("cancelled", "small-cpu", 0.25)


def test_so_does_one_whose_deadline_passes(jobs: Jobs, store: Store) -> None:
    job = jobs.running(deadline_ms=int(time.time() * 1000) + 60_000)
    jobs.leave(job)
    store.redis.zadd("fabric:deadlines", {job: 1})
    assert store(transitions.expire()) == 1
    assert jobs.state(job) is JobState.EXPIRED
    assert jobs.places(job) == {"jobs:default"}


def test_a_stream_that_has_spoken_gets_no_second_voice(jobs: Jobs, store: Store) -> None:
    job = jobs.running(stream=True)
    store(transitions.emit([Piece(job, 1, b'{"type":"token"}')]))
    assert jobs.leave(job, measures=TOOK, cost_usd=0.25) == "ended"
    (end,) = jobs.completions(job)
    assert (end.state, orjson.loads(end.error or b"")["code"]) == ("failed", "stream_broken")
    assert end.measures.cost_usd == 0.25


def test_one_that_was_told_to_stop_stops(jobs: Jobs, store: Store) -> None:
    job = jobs.running()
    store(transitions.cancel([job]))
    assert jobs.leave(job) == "ended"
    assert jobs.state(job) is JobState.CANCELLED


def test_a_late_word_changes_nothing(jobs: Jobs, store: Store) -> None:
    job = jobs.running()
    jobs.rescue()
    assert jobs.leave(job) == "fenced"
    assert jobs.places(job) == {"lane:interactive|default|small", "jobs:default", "live"}


def test_why_each_place_is_out_is_kept_apart(jobs: Jobs, store: Store) -> None:
    job = jobs.running()
    jobs.leave(job, error=ContextOverflow("too long").info)
    drain(store)
    jobs.send(job, "small-gpu")
    jobs.claim(job)
    jobs.leave(job)
    (taken,) = drain(store, "gpu")
    assert taken.chain.exhausted == (("small-cpu", "context_length_exceeded"), ("small-gpu", "engine_error"))
    assert taken.chain.overflowed == ("small-cpu",)


def test_a_scheduler_that_dies_with_it_in_hand_costs_nothing(jobs: Jobs, store: Store) -> None:
    job = jobs.running()
    jobs.leave(job)
    store(transitions.take([(dead_queue("cpu"), 1)], lease_ms=-1))
    assert store(transitions.reclaim()) == (0, 1)
    (taken,) = store(transitions.take([("interactive|default|small", 1)]))
    assert taken.chain.code_at("small-cpu") == "engine_error"


def test_what_it_spent_before_is_told_apart_from_its_last_attempt(jobs: Jobs, store: Store) -> None:
    job = jobs.running()
    jobs.fail(job, measures=TOOK, cost_usd=0.25)
    jobs.run_again(job)
    jobs.leave(job, measures=TOOK, cost_usd=0.25)
    (taken,) = drain(store)
    assert taken.chain.spent_usd == 0.5
    store(transitions.reject([Rejection(job, JobState.DEAD, EngineError("no").info, b"{}")]))
    last = jobs.events(job)[-1]
    assert (last["measures"]["cost_usd"], last["spent_usd"]) == (0.25, 0.25)


def test_hours_of_machines_take_nothing_of_what_a_job_may_cost(jobs: Jobs, store: Store) -> None:
    job = jobs.running()
    took = Measures(engine_s=1.0, cost_usd=0.25, machine_usd=0.2).dump()
    jobs.fail(job, measures=took, cost_usd=0.25)
    jobs.run_again(job)
    jobs.leave(job, measures=took, cost_usd=0.25)
    (taken,) = drain(store)
    assert taken.chain.spent_usd == pytest.approx(0.1)
    store(transitions.reject([Rejection(job, JobState.DEAD, EngineError("no").info, b"{}")]))
    assert jobs.events(job)[-1]["spent_usd"] == 0.25, "what it did cost is told whole"


def test_small_amounts_add_up(jobs: Jobs, store: Store) -> None:
    job = jobs.running()
    jobs.fail(job, cost_usd=1.2e-05)
    jobs.run_again(job)
    jobs.leave(job, cost_usd=3e-07)
    (taken,) = drain(store)
    assert taken.chain.spent_usd == pytest.approx(1.23e-05)
