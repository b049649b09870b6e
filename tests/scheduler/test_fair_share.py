"""Tenants that wait for one model get tokens in the proportion of their weights, and nothing stands idle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.contracts.catalog import Catalog
from fabric.contracts.job import PRIORITIES, JobSpec, Priority
from fabric.routing import DeploymentState, World
from fabric.store.transitions import Lane
from scheduler.fair_share import QUANTUM, FairShare
from scheduler.lanes import ROUND, share_out

CATALOG = Catalog.model_validate(
    {
        "models": [
            {
                "name": m,
                "deployments": [{"name": f"{m}-{tier}", "engine": "mock", "tier": tier} for tier in ("cpu", "gpu")],
            }
            for m in ("m", "n")
        ]
    }
)
#: A second in which the class counts, not the wait.
NOW_MS = 1_000


class Backlog:
    """Jobs that wait, of tenants whose jobs are all alike, and a scheduler that sends what it takes."""

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self.fair = FairShare(weights)
        self.waiting: Counter[tuple[str, str, Priority]] = Counter()  # by tenant, model and class
        self.job_tokens: dict[str, float] = {}
        self.due_ms: dict[str, int] = {}
        self.served: Counter[str] = Counter()  # tenant -> tokens
        self.jobs: Counter[str] = Counter()

    def add(self, tenant: str, jobs: int, tokens: float = 100, model: str = "m", priority: Priority = "batch") -> None:
        self.waiting[tenant, model, priority] += jobs
        self.job_tokens[tenant] = tokens

    def round(self, **free: int) -> int:
        """``free``: jobs that each deployment takes now; ``m_cpu`` is ``m-cpu``."""
        lanes = [
            Lane(
                JobSpec("", "/v1/chat/completions", model, tenant=tenant, priority=priority).lane,
                priority,
                tenant,
                model,
                length,
                self.due_ms.get(tenant, 0),
            )
            for (tenant, model, priority), length in self.waiting.items()
            if length
        ]
        world = World({name.replace("_", "-"): DeploymentState(1, 1, jobs, 0) for name, jobs in free.items()})
        taken = share_out(lanes, world, CATALOG, "r", NOW_MS, self.fair)
        for name, jobs in taken:
            lane = next(found for found in lanes if found.name == name)
            self.waiting[lane.tenant, lane.model, lane.priority] -= jobs
            self.served[lane.tenant] += int(jobs * self.job_tokens[lane.tenant])
            self.jobs[lane.tenant] += jobs
            for _ in range(jobs):
                self.fair.charge((lane.tenant, lane.model), self.job_tokens[lane.tenant])
        return sum(jobs for _, jobs in taken)


def test_two_tenants_with_equal_jobs_get_half_each_though_one_came_first_with_much_more() -> None:
    backlog = Backlog()
    backlog.add("first", 100_000)
    for _ in range(20):
        backlog.round(m_cpu=64)
    backlog.add("second", 1_000)
    before = backlog.served.copy()
    for _ in range(10):
        backlog.round(m_cpu=64)
    got = backlog.served - before
    assert abs(got["first"] - got["second"]) <= QUANTUM + 2 * 100


def test_tokens_count_and_not_jobs() -> None:
    backlog = Backlog()
    backlog.add("long", 10_000, tokens=4_000)
    backlog.add("short", 10_000, tokens=100)
    for _ in range(200):
        backlog.round(m_cpu=16)
    assert backlog.served["long"] == pytest.approx(backlog.served["short"], rel=0.05)
    assert backlog.jobs["short"] > 30 * backlog.jobs["long"]


def test_a_tenant_of_weight_three_gets_three_times_the_tokens() -> None:
    backlog = Backlog({"paying": 3})
    backlog.add("paying", 100_000)
    backlog.add("trying", 100_000)
    for _ in range(200):
        backlog.round(m_cpu=32)
    assert backlog.served["paying"] == pytest.approx(3 * backlog.served["trying"], rel=0.05)


def test_what_nobody_else_wanted_is_owed_to_nobody() -> None:
    backlog = Backlog()
    backlog.add("alone", 100_000, tokens=1_000)
    for _ in range(50):
        backlog.round(m_cpu=100)
    backlog.add("late", 100_000, tokens=1_000)
    before = backlog.served.copy()
    for _ in range(5):
        backlog.round(m_cpu=20)
    got = backlog.served - before
    assert got["alone"] >= got["late"] - QUANTUM - 1_000


def test_who_waits_for_another_model_takes_nothing_away() -> None:
    backlog = Backlog()
    backlog.add("a", 1_000, model="m")
    backlog.add("b", 1_000, model="n")
    assert backlog.round(m_cpu=10, n_cpu=30) == 40
    assert backlog.jobs == {"a": 10, "b": 30}


def test_among_those_with_credit_the_earliest_due_time_goes_first() -> None:
    backlog = Backlog()
    backlog.due_ms = {"later": 9, "sooner": 5}
    backlog.add("later", 3)
    backlog.add("sooner", 3)
    backlog.round(m_cpu=3)
    assert backlog.jobs == {"sooner": 3}


def test_a_class_above_goes_first_whoever_has_had_more() -> None:
    backlog = Backlog()
    backlog.add("busy", 1_000, priority="interactive")
    backlog.add("other", 1_000, priority="batch")
    for _ in range(5):
        backlog.round(m_cpu=32)
    assert backlog.jobs["other"] == 0


tenants = st.sampled_from("abc")
work = st.lists(
    st.tuples(
        tenants,
        st.integers(1, 600),
        st.sampled_from((1, 30, 500, 20_000)),
        st.sampled_from("mn"),
        st.sampled_from(PRIORITIES),
    ),
    max_size=8,
)
rounds = st.lists(st.tuples(work, st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=12)


@given(rounds, st.dictionaries(tenants, st.floats(0.1, 10)))
def test_no_room_stands_idle_while_somebody_waits_for_it(
    history: list[tuple[list[tuple[str, int, int, str, Priority]], int, int]], weights: dict[str, float]
) -> None:
    backlog = Backlog(weights)
    for new, cpu, other in history:
        for tenant, jobs, tokens, model, priority in new:
            backlog.add(tenant, jobs, tokens, model, priority)
        before = {model: sum(n for (_, m, _), n in backlog.waiting.items() if m == model) for model in "mn"}
        taken = backlog.round(m_cpu=cpu, n_gpu=other)
        most = min(ROUND, min(before["m"], cpu) + min(before["n"], other))
        # An interactive job may overbook a place by one.
        assert most <= taken <= min(ROUND, most + 2)


@settings(max_examples=50)
@given(
    st.dictionaries(
        st.sampled_from("abcde"),
        st.tuples(st.sampled_from((10, 100, 1_000, 9_000)), st.sampled_from((0.5, 1, 2, 4))),
        min_size=2,
    ),
    st.integers(1, 64),
)
def test_two_that_always_wait_never_drift_apart(kinds: dict[str, tuple[int, float]], room: int) -> None:
    """The law of deficit round robin: served tokens over weight differ by a quantum and some jobs at most, however
    long it goes. In a round a kind's mean stands for each of its jobs, here exactly."""
    backlog = Backlog({tenant: weight for tenant, (_, weight) in kinds.items()})
    for tenant, (tokens, _) in kinds.items():
        backlog.add(tenant, 1_000_000, tokens)
        backlog.fair.charge((tenant, "m"), tokens)  # of which the mean is learned
    for _ in range(60):
        backlog.round(m_cpu=room)
        shares = [backlog.served[t] / weight for t, (_, weight) in kinds.items()]
        largest = max(tokens / weight for tokens, weight in kinds.values())
        assert max(shares) - min(shares) <= QUANTUM + 3 * largest
