"""Budgets: reserved when a job comes in, settled when it ends, in the same calls that take it in and end it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fabric.contracts.budget import NANO
from fabric.contracts.errors import RateLimited
from fabric.contracts.job import JobState, Measures, Usage
from fabric.store import Store, budgets, transitions
from fabric.store.budgets import Balance, Opening
from fabric.store.transitions import NewJob
from tests.store.conftest import Jobs

if TYPE_CHECKING:
    from tests.conftest import Valkey

END_MS = 4_000_000_000_000
#: No fault of its deployment: its breaker stays closed.
LATER = RateLimited("Later.").info


def charge(amount: int, limit: int | str = 1_000, name: str = "b") -> str:
    return f"{name} total {limit} {amount} 0"


def measures(cost: int, machine: float = 0.0) -> bytes:
    return Measures(engine_s=1, usage=Usage(3, 2), cost_usd=cost / NANO + machine, machine_usd=machine).dump()


def opened(store: Store, *names: str, spent: int = 0) -> None:
    store(budgets.open_([Opening(name, "total", None, spent) for name in names]))


def balance(store: Store, name: str = "b") -> Balance:
    (found,) = store(budgets.balances([(name, "total")]))
    assert found is not None
    return found


def accept(jobs: Jobs, charges: str, **fields: Any) -> transitions.Accepted:
    (answer,) = jobs.accept(NewJob(jobs.spec(**fields), b"sealed", charges=charges))
    return answer


def test_what_fits_is_reserved_and_what_does_not_is_turned_away(jobs: Jobs, store: Store) -> None:
    opened(store, "b", spent=100)
    assert accept(jobs, charge(600)).verdict == "accepted"
    refused = accept(jobs, f"b total 1000 301 {END_MS}")
    assert (refused.verdict, refused.budget, refused.budget_end_ms) == ("over", "b", END_MS)
    assert accept(jobs, charge(300)).verdict == "accepted"
    assert balance(store) == Balance(reserved=900, spent=100)
    assert len(jobs.lane()) == 2


def test_of_several_budgets_all_have_room_or_none_is_touched(jobs: Jobs, store: Store) -> None:
    opened(store, "b", "c")
    both = f"{charge(500)}\n{charge(500, 400, 'c')}"
    assert accept(jobs, both).budget == "c"
    assert (balance(store), balance(store, "c")) == (Balance(), Balance())


def test_one_that_only_counts_turns_nobody_away(jobs: Jobs, store: Store) -> None:
    opened(store, "b")
    assert accept(jobs, charge(5_000, "-")).verdict == "accepted"
    assert balance(store).reserved == 5_000


def test_before_it_is_opened_nobody_knows_what_is_left(jobs: Jobs, store: Store) -> None:
    assert accept(jobs, charge(1)).verdict == "unready"
    opened(store, "b", spent=7)
    opened(store, "b", spent=9)
    assert balance(store).spent == 7
    assert accept(jobs, charge(1)).verdict == "accepted"


def test_the_same_job_again_reserves_nothing(jobs: Jobs, store: Store) -> None:
    opened(store, "b")
    job = NewJob(jobs.spec(), b"sealed", idempotency_key="k", fingerprint="f", charges=charge(400))
    again = NewJob(jobs.spec(), b"sealed", idempotency_key="k", fingerprint="f", charges=charge(400))
    assert [answer.verdict for answer in jobs.accept(job, again, job)] == ["accepted", "exists", "exists"]
    assert balance(store).reserved == 400


@pytest.mark.parametrize("state", [JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.DEAD])
def test_at_the_end_the_cost_takes_the_place_of_the_reservation(jobs: Jobs, store: Store, state: JobState) -> None:
    opened(store, "b")
    job = jobs.running(charges=charge(400))
    assert jobs.commit(job, state, measures=measures(123, machine=5.0))
    assert not jobs.commit(job, state, measures=measures(123))
    assert balance(store) == Balance(reserved=0, spent=123)


def test_jobs_that_never_ran_give_all_of_it_back(jobs: Jobs, store: Store) -> None:
    opened(store, "b")
    cancelled = jobs.queued(charges=charge(100))
    rejected = jobs.taken(charges=charge(100))
    expired = jobs.queued(charges=charge(100), deadline_ms=1)
    assert balance(store).reserved == 300
    store(transitions.cancel([cancelled]))
    jobs.reject(rejected)
    store(transitions.expire())
    assert [jobs.state(job) for job in (cancelled, rejected, expired)] == ["cancelled", "failed", "expired"]
    assert balance(store) == Balance()


def test_every_attempt_is_paid_for(jobs: Jobs, store: Store) -> None:
    opened(store, "b")
    job = jobs.running(charges=charge(400))
    jobs.fail(job, measures=measures(50), cost_usd=50 / NANO)
    jobs.run_again(job)
    jobs.leave(job, measures=measures(30), cost_usd=30 / NANO)
    assert balance(store) == Balance(reserved=400, spent=0)
    jobs.reject(store(transitions.take([("dlq:cpu", 1)]))[0].spec.id, JobState.DEAD)
    assert balance(store) == Balance(reserved=0, spent=80)


def test_a_replay_reserves_again_and_pays_nothing_twice(jobs: Jobs, store: Store) -> None:
    opened(store, "b")
    job = jobs.running(charges=charge(400))
    jobs.commit(job, JobState.DEAD, measures=measures(100))
    assert store(transitions.replay([job])) == ["queued"]
    assert balance(store) == Balance(reserved=400, spent=100)
    jobs.run_again(job)
    jobs.commit(job, measures=measures(200))
    assert balance(store) == Balance(reserved=0, spent=300)


def test_a_replay_is_paid_for_out_of_the_window_that_it_names(jobs: Jobs, store: Store) -> None:
    opened(store, "b", "later")
    job = jobs.running(charges=charge(400))
    jobs.commit(job, JobState.DEAD, measures=measures(100))
    store.redis.delete("fabric:budget:b total")  # long over, and forgotten
    spec = jobs.record(job).spec
    assert store(transitions.replay([job])) == ["unready"]
    assert store(transitions.replay_as(spec, charge(300, name="nowhere"))) == ["unready"]
    assert store(transitions.replay_as(spec, charge(300, name="later"))) == ["queued"]
    jobs.run_again(job)
    jobs.commit(job, measures=measures(200))
    assert balance(store, "later") == Balance(reserved=0, spent=200)


def test_a_replay_for_which_no_budget_counts_any_more_reserves_nothing(jobs: Jobs, store: Store) -> None:
    opened(store, "b")
    job = jobs.running(charges=charge(400))
    jobs.commit(job, JobState.DEAD, measures=measures(100))
    assert store(transitions.replay_as(jobs.record(job).spec, "")) == ["queued"]
    jobs.run_again(job)
    jobs.commit(job, measures=measures(200))
    assert balance(store) == Balance(reserved=0, spent=100)


def test_a_replay_without_room_stays_parked(jobs: Jobs, store: Store) -> None:
    opened(store, "b")
    job = jobs.running(charges=charge(400))
    jobs.commit(job, JobState.DEAD, measures=measures(300))
    assert accept(jobs, charge(400)).verdict == "accepted"
    assert store(transitions.replay([job])) == ["over"]
    assert jobs.state(job) is JobState.DEAD
    assert balance(store) == Balance(reserved=400, spent=300)


def test_a_job_whose_worker_died_keeps_its_reservation(jobs: Jobs, store: Store) -> None:
    opened(store, "b")
    jobs.running(charges=charge(400))
    jobs.rescue()
    jobs.rescue()
    assert balance(store) == Balance(reserved=400, spent=0)


def test_measures_that_cannot_be_read_free_the_reservation(jobs: Jobs, store: Store) -> None:
    opened(store, "b")
    job = jobs.running(charges=charge(400))
    assert jobs.commit(job, measures=b"[not json")
    assert balance(store) == Balance()


def test_windows_are_forgotten_long_after_their_end(store: Store) -> None:
    store(budgets.open_([Opening("b", "2096-10", END_MS), Opening("b", "total", None)]))
    assert store.redis.expiretime("fabric:budget:b 2096-10") > END_MS // 1000
    assert store.redis.ttl("fabric:budget:b total") == -1


def test_tokens_are_settled_as_they_were_used(jobs: Jobs, store: Store) -> None:
    opened(store, "b", "t")
    job = jobs.running(charges=f"{charge(400)} usd/all\n{charge(100, name='t')} tokens/all")
    jobs.fail(job, action="wait", error=LATER, measures=measures(50), cost_usd=50 / NANO)
    jobs.run_again(job)
    jobs.commit(job, JobState.DEAD, measures=measures(30))
    assert balance(store) == Balance(reserved=0, spent=80)
    assert balance(store, "t") == Balance(reserved=0, spent=10)  # five each
    assert store(transitions.replay([job])) == ["queued"]
    assert balance(store, "t") == Balance(reserved=100, spent=10)
    jobs.run_again(job)
    jobs.commit(job, measures=measures(1))
    assert balance(store, "t") == Balance(reserved=0, spent=15)


class Balances(RuleBasedStateMachine):
    """Whatever happens to jobs: reserved is what the living may cost, spent what the ended did cost, and both
    together never go beyond the limit."""

    LIMIT = 1_000
    store: Store

    @initialize()
    def begin(self) -> None:
        self.store.redis.flushall()
        self.jobs = Jobs(self.store)
        self.live: dict[str, int] = {}
        self.parked: dict[str, int] = {}
        self.spent = 0
        self.paid: dict[str, int] = {}
        opened(self.store, "b")

    @rule(amount=st.integers(1, 400))
    def submit(self, amount: int) -> None:
        spec = self.jobs.spec()
        (answer,) = self.jobs.accept(NewJob(spec, b"sealed", charges=charge(amount, self.LIMIT)))
        fits = sum(self.live.values()) + self.spent + amount <= self.LIMIT
        assert answer.verdict == ("accepted" if fits else "over")
        if fits:
            self.live[spec.id] = amount
            self.paid[spec.id] = 0

    @precondition(lambda self: self.live)
    @rule(data=st.data(), share=st.floats(0, 1), state=st.sampled_from([JobState.SUCCEEDED, JobState.DEAD]))
    def end(self, data: st.DataObject, share: float, state: JobState) -> None:
        job = data.draw(st.sampled_from(sorted(self.live)))
        cost = int((self.live[job] - self.paid[job]) * share)
        self.jobs.run_again(job)
        assert self.jobs.commit(job, state, measures=measures(cost))
        amount = self.live.pop(job)
        self.spent += self.paid.pop(job) + cost
        if state is JobState.DEAD:
            self.parked[job] = amount

    @precondition(lambda self: self.live)
    @rule(data=st.data(), share=st.floats(0, 1))
    def try_once(self, data: st.DataObject, share: float) -> None:
        job = data.draw(st.sampled_from(sorted(self.live)))
        cost = int((self.live[job] - self.paid[job]) * share)
        self.jobs.run_again(job)
        fields = {"action": "wait", "error": LATER, "measures": measures(cost), "cost_usd": cost / NANO}
        assert self.jobs.fail(job, **fields) == "queued"
        self.paid[job] += cost

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(sorted(self.live)))
        self.store(transitions.cancel([job]))
        self.live.pop(job)
        self.spent += self.paid.pop(job)

    @precondition(lambda self: self.parked)
    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(sorted(self.parked)))
        fits = sum(self.live.values()) + self.spent + self.parked[job] <= self.LIMIT
        assert self.store(transitions.replay([job])) == ["queued" if fits else "over"]
        if fits:
            self.live[job] = self.parked.pop(job)
            self.paid[job] = 0

    @invariant()
    def adds_up(self) -> None:
        if hasattr(self, "jobs"):
            assert balance(self.store) == Balance(sum(self.live.values()), self.spent)
            assert sum(self.live.values()) + self.spent <= self.LIMIT


def test_balances_add_up_whatever_happens(valkey: Valkey, store: Store) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    Balances.store = store
    run_state_machine_as_test(
        Balances,
        settings=settings(
            max_examples=30, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
