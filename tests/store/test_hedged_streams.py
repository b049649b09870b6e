"""A stream and its second try elsewhere: one voice, that of the first to have a word; the other one is stopped and paid
for."""

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
FINAL = ("succeeded", "failed", "cancelled", "expired", "dead")


def measures(nanos: int) -> bytes:
    return Measures(engine_s=1, usage=Usage(3, 4), cost_usd=nanos / NANO).dump()


def balance(store: Store) -> Balance:
    (found,) = store(budgets.balances([("b", "total")]))
    assert found is not None
    return found


class Pair:
    """A stream that runs on w1 and has said nothing yet, and its second try that runs on w2."""

    def __init__(self, jobs: Jobs, store: Store, *, claimed: bool = True, **fields: Any) -> None:
        self.jobs, self.store = jobs, store
        store(budgets.open_([Opening("b", "total", None, 0)]))
        fields = {"stream": True, "charges": "b total 1000 100 0", **fields}
        self.first = jobs.running("w1", **fields) if claimed else jobs.dispatched(**fields)
        self.second = jobs.dispatched(deployment="small-cloud", hedge_of=self.first, **fields)
        assert store(transitions.hedge(self.first, jobs.attempts[self.first], self.second))
        assert jobs.claim(self.second, "w2")

    def say(self, job: str, *words: str) -> list[int]:
        """As a worker does."""
        pieces = [Piece(job, 1, b'{"type":"token","chunk":{"w":"%b"}}' % word.encode()) for word in words]
        answers = self.store(transitions.emit(pieces))
        if transitions.UNSETTLED in answers:
            assert set(answers) == {transitions.UNSETTLED}
            return self.store(transitions.emit(pieces)) if self.store(transitions.speak(job, 1)) else [1] * len(words)
        return answers

    @property
    def said(self) -> list[str]:
        return [event["chunk"]["w"] for event in self.jobs.events(self.first) if event["type"] == "token"]


@pytest.fixture
def pair(jobs: Jobs, store: Store) -> Pair:
    return Pair(jobs, store)


class TestTheSecondSpeaksFirst:
    def test_it_is_the_streams_voice_from_then_on(self, pair: Pair, jobs: Jobs, store: Store) -> None:
        ear = Ear(store, "fabric:worker:w1")
        assert pair.say(pair.second, "one ", "two ") == [1, 1]
        assert ear.heard(1) == [[pair.first, "outrun"]]
        assert pair.say(pair.first, "another voice") == [1], (
            "its worker hears that it was outrun, not that it lost its job"
        )
        assert pair.say(pair.second, "three") == [1]
        record = jobs.record(pair.first)
        assert (record.state, record.attempts[-1].deployment, record.attempts[-1].worker) == (
            JobState.RUNNING,
            "small-cloud",
            "w2",
        )
        assert jobs.commit(pair.second, result=b"{}", measures=measures(30))
        assert pair.said == ["one ", "two ", "three"]
        assert jobs.event_types(pair.first) == [
            *("queued", "dispatched", "running", "dispatched", "running", "token", "token", "token", "succeeded"),
        ]
        assert [event["number"] for event in jobs.events(pair.first) if event["type"] == "running"] == [1, 2]
        assert [(a.outcome, a.deployment) for a in jobs.record(pair.first).attempts] == [
            ("outrun", "small-cpu"),
            ("succeeded", "small-cloud"),
        ]
        (done,) = jobs.completions()
        assert (done.spec.id, done.attempt, done.deployment, done.state) == (
            pair.first,
            2,
            "small-cloud",
            JobState.SUCCEEDED,
        )
        assert jobs.state(pair.second) is None
        assert store(reads.payload(pair.second)) is None
        assert jobs.places(pair.second) == set()
        assert store(reads.hedges()) == {"begun": 1, "won": 1}

    def test_both_are_paid_for(self, pair: Pair, jobs: Jobs, store: Store) -> None:
        pair.say(pair.second, "one")
        assert jobs.beat("w1", pair.first) == {pair.first: "outrun"}, "where the message was missed"
        assert jobs.commit(pair.first, JobState.CANCELLED, b"", STOPPED, attempt=1, measures=measures(20))
        assert balance(store) == Balance(reserved=100, spent=20)
        jobs.commit(pair.second, measures=measures(30))
        assert balance(store) == Balance(reserved=0, spent=50)
        assert [(done.late, done.deployment) for done in jobs.completions(pair.first)] == [
            (True, "small-cpu"),
            (False, "small-cloud"),
        ]
        assert jobs.places(pair.first) == {"jobs:default"}

    def test_the_same_call_again_says_nothing_twice(self, pair: Pair, store: Store) -> None:
        call = transitions.emit([Piece(pair.second, 1, b'{"type":"token","chunk":{"w":"x"}}')])
        assert store(call) == [transitions.UNSETTLED]
        assert pair.said == []
        for _ in range(2):
            assert store(transitions.speak(pair.second, 1))
        for _ in range(2):
            assert store(call) == [1]
        assert pair.said == ["x"]

    def test_whoever_listens_hears_it(self, pair: Pair, store: Store) -> None:
        store(transitions.watch(pair.first, "fabric:gateway:g", first=1))
        ear = Ear(store, "fabric:gateway:g")
        pair.say(pair.second, "one")
        assert [message[0] for message in ear.heard(3)] == [pair.first] * 3

    @pytest.mark.parametrize("why", ["cancelled", "expired"])
    def test_it_is_stopped_where_it_runs(self, jobs: Jobs, store: Store, why: str) -> None:
        pair = Pair(jobs, store, deadline_ms=1)
        pair.say(pair.second, "one")
        ear = Ear(store, "fabric:worker:w2")
        store(transitions.cancel([pair.first]) if why == "cancelled" else transitions.expire())
        assert ear.heard(1) == [[pair.second, why]]
        assert jobs.commit(pair.second, JobState(why), b"", STOPPED, measures=measures(5))
        assert jobs.state(pair.first) == why
        assert jobs.members("deadlines") == set()
        assert jobs.members("live") == set()

    def test_its_workers_death_is_a_broken_stream(self, pair: Pair, jobs: Jobs, store: Store) -> None:
        pair.say(pair.second, "one")
        assert jobs.commit(pair.first, JobState.CANCELLED, b"", STOPPED, attempt=1)
        jobs.rescue()
        record = jobs.record(pair.first)
        assert (record.state, record.error and record.error["code"]) == (JobState.FAILED, "stream_broken")
        assert pair.said == ["one"], "never a second voice"
        assert jobs.lane() == []
        assert balance(store).reserved == 0

    def test_one_that_nobody_has_claimed_is_not_claimed_any_more(self, jobs: Jobs, store: Store) -> None:
        pair = Pair(jobs, store, claimed=False)
        pair.say(pair.second, "one")
        assert not jobs.claim(pair.first, "w1", attempt=1)
        assert jobs.commit(pair.second)
        assert jobs.state(pair.first) is JobState.SUCCEEDED
        assert balance(store).reserved == 0


class TestTheFirstSpeaksFirst:
    def test_the_second_is_stopped_at_once(self, pair: Pair, jobs: Jobs, store: Store) -> None:
        ear = Ear(store, "fabric:worker:w2")
        assert pair.say(pair.first, "one") == [1]
        assert ear.heard(1) == [[pair.second, "cancelled"]]
        assert pair.say(pair.second, "another voice") == [1]
        assert pair.say(pair.first, "two") == [1]
        assert jobs.commit(pair.second, JobState.CANCELLED, b"", STOPPED, measures=measures(20))
        assert jobs.commit(pair.first, measures=measures(30))
        assert pair.said == ["one", "two"]
        assert balance(store) == Balance(reserved=0, spent=50)
        assert {done.spec.id for done in jobs.completions()} == {pair.first, pair.second}
        assert store(reads.hedges()) == {"begun": 1}

    def test_one_that_still_waits_ends(self, jobs: Jobs, store: Store) -> None:
        first = jobs.running(stream=True)
        second = jobs.queued(hedge_of=first, stream=True)
        assert store(transitions.hedge(first, 1, second))
        assert store(transitions.speak(first, 1))
        assert jobs.state(second) is JobState.CANCELLED
        assert jobs.lane() == []


def test_a_cancelled_stream_stays_silent(pair: Pair, jobs: Jobs, store: Store) -> None:
    store(transitions.cancel([pair.first]))
    assert pair.say(pair.second, "one") == [1]
    assert pair.said == []
    assert jobs.commit(pair.first, JobState.CANCELLED, b"", STOPPED)
    assert jobs.commit(pair.second, JobState.CANCELLED, b"", STOPPED)
    assert jobs.state(pair.first) is JobState.CANCELLED


moves = st.lists(
    st.tuples(
        st.sampled_from(("first", "second")), st.sampled_from(("says", "done", "fails", "broken", "stops", "cancel"))
    ),
    max_size=8,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moves)
def test_whatever_happens_there_is_one_voice_and_one_outcome(valkey: Valkey, history: list[tuple[str, str]]) -> None:
    store = Store(valkey.url)
    store.redis.flushall()
    jobs = Jobs(store)
    pair = Pair(jobs, store)
    try:
        for which, what in history:
            job = pair.first if which == "first" else pair.second
            match what:
                case "says":
                    pair.say(job, which)
                case "done":
                    jobs.commit(job, result=which.encode(), attempt=1, measures=measures(1))
                case "fails":
                    jobs.leave(job, attempt=1)
                case "broken":
                    jobs.commit(job, JobState.FAILED, b"", STOPPED, attempt=1, measures=measures(1))
                case "stops":
                    jobs.commit(job, JobState.CANCELLED, b"", STOPPED, attempt=1, measures=measures(1))
                case _:
                    store(transitions.cancel([pair.first]))
        for job in (pair.second, pair.first):
            jobs.commit(job, JobState.CANCELLED, b"", STOPPED, attempt=1)
        store(transitions.cancel([pair.first, pair.second]))
        assert len(set(pair.said)) <= 1
        ends = [done for done in jobs.completions(pair.first) if not done.late]
        assert len(ends) == 1
        assert jobs.state(pair.first) == ends[0].state
        assert len([kind for kind in jobs.event_types(pair.first) if kind in FINAL]) == 1
        assert len([done for done in jobs.completions(pair.second) if not done.late]) <= 1
        store(transitions.reclaim(outrun_ms=-1))
        assert balance(store).reserved == 0
        for index in ("live", "deadlines", "dispatched", "busy:small-cpu", "busy:small-cloud", "held:w1", "held:w2"):
            assert jobs.members(index) == set(), index
    finally:
        store.close()
