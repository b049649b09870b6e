"""A job and its second try elsewhere: one outcome, whichever is quicker, and both are paid for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fabric.contracts.budget import NANO
from fabric.contracts.errors import Cancelled
from fabric.contracts.job import JobState, Measures, Usage
from fabric.store import Store, budgets, reads, transitions
from fabric.store.budgets import Balance, Opening
from fabric.store.transitions import Piece
from tests.store.conftest import Ear, Jobs

if TYPE_CHECKING:
    from tests.conftest import Valkey

STOPPED = Cancelled("stopped").info


def measures(cost: float, tokens: int = 4) -> bytes:
    return Measures(engine_s=1, usage=Usage(3, tokens), cost_usd=cost).dump()


def charge(amount: int) -> str:
    return f"b total 1000 {amount} 0"


def balance(store: Store) -> Balance:
    (found,) = store(budgets.balances([("b", "total")]))
    assert found is not None
    return found


class Pair:
    """A job that runs on w1, and its second try that runs on w2."""

    def __init__(self, jobs: Jobs, store: Store, *, charged: bool = False, claimed: bool = True, **fields: Any) -> None:
        self.jobs, self.store = jobs, store
        if charged:
            store(budgets.open_([Opening("b", "total", None, 0)]))
            fields["charges"] = charge(100)
        self.first = jobs.running("w1", **fields) if claimed else jobs.dispatched(**fields)
        self.second = jobs.dispatched(deployment="small-cloud", hedge_of=self.first, **fields)
        assert store(transitions.hedge(self.first, jobs.attempts[self.first], self.second))
        assert jobs.claim(self.second, "w2")


@pytest.fixture
def pair(jobs: Jobs, store: Store) -> Pair:
    return Pair(jobs, store)


def test_a_second_try_that_is_quicker_gives_the_job_its_answer(pair: Pair, jobs: Jobs, store: Store) -> None:
    assert jobs.commit(pair.second, result=b'{"a":1}', measures=measures(0.5))
    record = jobs.record(pair.first)
    assert (record.state, record.result) == (JobState.SUCCEEDED, b'{"a":1}')
    earlier, last = record.attempts
    assert (earlier.outcome, earlier.deployment, earlier.worker) == ("outrun", "small-cpu", "w1")
    assert (last.outcome, last.deployment, last.worker, last.number) == ("succeeded", "small-cloud", "w2", 2)
    (done,) = jobs.completions()
    assert (done.spec.id, done.attempt, done.deployment, done.measures.cost_usd) == (pair.first, 2, "small-cloud", 0.5)
    assert jobs.state(pair.second) is None
    assert store(reads.payload(pair.second)) is None
    assert jobs.places(pair.second) == set()
    assert jobs.places(pair.first) == {"jobs:default", "abort:w1"}
    assert store(reads.hedges()) == {"begun": 1, "won": 1}


def test_the_one_that_was_outrun_is_stopped_and_paid_for(pair: Pair, jobs: Jobs, store: Store) -> None:
    ear = Ear(store, "fabric:worker:w1")
    jobs.commit(pair.second, measures=measures(0.5))
    assert ear.heard(1) == [[pair.first, "outrun"]]
    assert jobs.beat("w1", pair.first) == {pair.first: "outrun"}, "where the message was missed"
    assert jobs.commit(pair.first, JobState.CANCELLED, b"", STOPPED, attempt=1, measures=measures(0.25))
    _, bill = jobs.completions()
    assert (bill.late, bill.attempt, bill.deployment, bill.measures.cost_usd) == (True, -1, "small-cpu", 0.25)
    assert not jobs.commit(pair.first, JobState.CANCELLED, b"", STOPPED, attempt=1, measures=measures(0.25)), "once"
    assert len(jobs.completions()) == 2
    assert jobs.places(pair.first) == {"jobs:default"}


def test_an_answer_that_comes_at_the_same_moment_counts_once(pair: Pair, jobs: Jobs) -> None:
    assert jobs.commit(pair.second, result=b"2", measures=measures(0.5))
    assert jobs.commit(pair.first, result=b"1", attempt=1, measures=measures(0.25))
    assert jobs.record(pair.first).result == b"2"
    assert [done.late for done in jobs.completions(pair.first)] == [False, True]


def test_a_first_try_that_is_quicker_stops_the_second(pair: Pair, jobs: Jobs, store: Store) -> None:
    ear = Ear(store, "fabric:worker:w2")
    assert jobs.commit(pair.first, result=b"1")
    assert ear.heard(1) == [[pair.second, "cancelled"]]
    assert jobs.state(pair.second) is JobState.RUNNING
    assert jobs.commit(pair.second, JobState.CANCELLED, b"", STOPPED, measures=measures(0.1))
    assert [done.state for done in jobs.completions()] == ["succeeded", "cancelled"]
    assert jobs.record(pair.first).result == b"1"


def test_one_that_still_waits_ends_with_the_first(jobs: Jobs, store: Store) -> None:
    first = jobs.running()
    second = jobs.queued(hedge_of=first)
    assert store(transitions.hedge(first, 1, second))
    jobs.commit(first)
    assert jobs.state(second) is JobState.CANCELLED
    assert jobs.lane() == []


def test_a_second_try_that_fails_leaves_the_first_alone(pair: Pair, jobs: Jobs) -> None:
    assert jobs.commit(pair.second, JobState.FAILED, b"", STOPPED)
    assert jobs.state(pair.first) is JobState.RUNNING
    assert jobs.commit(pair.first, result=b"1")
    assert jobs.record(pair.first).state is JobState.SUCCEEDED


def test_a_second_try_that_kills_its_workers_is_not_parked(jobs: Jobs, store: Store) -> None:
    """Nobody asked for it: to replay it would be paid for and answer nobody."""
    pair = Pair(jobs, store, claimed=False)
    assert jobs.rescue(deaths=1) == (0, 1)
    assert jobs.state(pair.second) is JobState.FAILED
    assert jobs.state(pair.first) is JobState.DISPATCHED
    assert store(reads.parked_count()) == 0
    assert store(reads.payload(pair.second)) is None


def test_nor_one_that_has_nowhere_to_go(jobs: Jobs, store: Store) -> None:
    first = jobs.running()
    second = jobs.taken(hedge_of=first)
    assert store(transitions.hedge(first, 1, second))
    jobs.reject(second, JobState.DEAD)
    assert jobs.state(second) is JobState.FAILED
    assert store(reads.parked_count()) == 0
    assert jobs.commit(first)


def test_it_saves_a_job_whose_first_try_has_failed_meanwhile(pair: Pair, jobs: Jobs) -> None:
    assert jobs.leave(pair.first) == "moving"
    assert jobs.commit(pair.second, result=b"2", measures=measures(0.5))
    record = jobs.record(pair.first)
    assert (record.state, record.result) == (JobState.SUCCEEDED, b"2")
    assert [attempt.outcome for attempt in record.attempts] == ["exhausted", "succeeded"]
    assert jobs.places(pair.first) == {"jobs:default"}


def test_a_job_that_was_not_claimed_yet_is_not_claimed_any_more(jobs: Jobs, store: Store) -> None:
    pair = Pair(jobs, store, claimed=False)
    assert jobs.commit(pair.second, result=b"2")
    assert not jobs.claim(pair.first, "w1", attempt=1)
    assert jobs.record(pair.first).state is JobState.SUCCEEDED


def test_a_cancelled_job_stays_cancelled(pair: Pair, jobs: Jobs, store: Store) -> None:
    store(transitions.cancel([pair.first]))
    assert jobs.commit(pair.second, result=b"2")
    assert jobs.state(pair.first) is JobState.RUNNING, "its worker stops it"
    assert jobs.commit(pair.first, JobState.CANCELLED, b"", STOPPED)
    assert jobs.state(pair.first) is JobState.CANCELLED


def test_a_first_token_ends_the_race(jobs: Jobs, store: Store) -> None:
    pair = Pair(jobs, store, stream=True)
    assert store(transitions.speak(pair.first, 1))
    assert store(transitions.emit([Piece(pair.first, 1, b'{"type":"token"}')])) == [1]
    assert jobs.commit(pair.second, result=b"2")
    assert jobs.state(pair.first) is JobState.RUNNING


@pytest.mark.parametrize("gone_on", ["ended", "next attempt", "speaks", "has one"])
def test_a_job_that_has_gone_on_gets_none(jobs: Jobs, store: Store, gone_on: str) -> None:
    first = jobs.running(stream=gone_on == "speaks")
    match gone_on:
        case "ended":
            jobs.commit(first)
        case "next attempt":
            jobs.fail(first)
            jobs.run_again(first)
        case "speaks":
            store(transitions.emit([Piece(first, 1, b'{"type":"token"}')]))
        case "has one":
            assert store(transitions.hedge(first, 1, jobs.queued(hedge_of=first)))
    second = jobs.queued(hedge_of=first)
    assert not store(transitions.hedge(first, 1, second))
    assert jobs.state(second) is JobState.CANCELLED
    looked = store(reads.silent(first))
    assert looked is None or looked.attempt == 2


class TestBudgets:
    def test_both_are_paid_for_and_nothing_stays_reserved(self, jobs: Jobs, store: Store) -> None:
        pair = Pair(jobs, store, charged=True)
        assert balance(store) == Balance(reserved=200, spent=0)
        jobs.commit(pair.second, measures=measures(30 / NANO))
        assert balance(store) == Balance(reserved=100, spent=30), "for what the first one has taken"
        jobs.commit(pair.first, JobState.CANCELLED, b"", STOPPED, attempt=1, measures=measures(20 / NANO))
        assert balance(store) == Balance(reserved=0, spent=50)

    def test_a_worker_that_never_says_what_it_took_keeps_nothing(self, jobs: Jobs, store: Store) -> None:
        pair = Pair(jobs, store, charged=True)
        jobs.commit(pair.second, measures=measures(30 / NANO))
        store(transitions.reclaim(outrun_ms=60_000))
        assert balance(store).reserved == 100
        store(transitions.reclaim(outrun_ms=-1))
        assert balance(store) == Balance(reserved=0, spent=30)

    def test_the_other_way_round(self, jobs: Jobs, store: Store) -> None:
        pair = Pair(jobs, store, charged=True)
        jobs.commit(pair.first, measures=measures(20 / NANO))
        jobs.commit(pair.second, JobState.CANCELLED, b"", STOPPED, measures=measures(30 / NANO))
        assert balance(store) == Balance(reserved=0, spent=50)


moves = st.lists(
    st.sampled_from(
        ("first done", "second done", "first fails", "second fails", "cancel", "first stops", "second stops")
    ),
    max_size=6,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moves)
def test_whatever_happens_there_is_one_outcome(valkey: Valkey, history: list[str]) -> None:
    store = Store(valkey.url)
    store.redis.flushall()
    jobs = Jobs(store)
    pair = Pair(jobs, store, charged=True)
    try:
        for move in history:
            match move.split():
                case ["cancel"]:
                    store(transitions.cancel([pair.first]))
                case [which, what]:
                    job = pair.first if which == "first" else pair.second
                    if what == "done":
                        jobs.commit(job, result=which.encode(), attempt=1, measures=measures(1 / NANO))
                    elif what == "fails":
                        jobs.leave(job, attempt=1)
                    else:
                        jobs.commit(job, JobState.CANCELLED, b"", STOPPED, attempt=1, measures=measures(1 / NANO))
        for job in (pair.first, pair.second):
            jobs.commit(job, JobState.CANCELLED, b"", STOPPED, attempt=1)
        store(transitions.cancel([pair.first, pair.second]))
        ends = [done for done in jobs.completions(pair.first) if not done.late]
        assert len(ends) == 1
        assert jobs.state(pair.first) == ends[0].state
        assert len([done for done in jobs.completions(pair.second) if not done.late]) <= 1
        store(transitions.reclaim(outrun_ms=-1))
        assert balance(store).reserved == 0
        assert jobs.members("live") == set()
    finally:
        store.close()
