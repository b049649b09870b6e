"""Jobs of the past under other policies: what moves, what it costs, and what would cross the wall."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.contracts.catalog import PRIVACY_LABELS, Catalog, Privacy
from fabric.contracts.experience import Experience
from fabric.contracts.job import JobSpec, Usage
from fabric.routing.simulation import Past, simulate

NOTHING = Experience()


def catalog(**fields: Any) -> Catalog:
    models = [
        {
            "name": "m",
            "deployments": [
                {"name": "home", "engine": "mock", "tier": "cpu"},
                {"name": "away", "engine": "mock", "tier": "cloud", "price": {"output_per_million": 10.0}},
            ],
        }
    ]
    return Catalog.model_validate({"models": models, **fields})


def past(privacy: Privacy = "internal", number: int = 0, **fields: Any) -> Past:
    spec = JobSpec(f"job_{number}", "/v1/chat/completions", "m", privacy=privacy, needs=("chat",), **fields)
    return Past(spec, "home", Usage(100, 1_000_000), 0.0)


def test_the_same_configuration_moves_nothing() -> None:
    found = simulate([past(), past("restricted")], catalog(), catalog(), NOTHING)
    assert (found.jobs, found.moved, found.crossings, found.unknown) == (2, 0, 0, 0)
    assert found.before == found.after
    assert dict(found.after.places) == {"home": 2}


def test_another_policy_moves_what_it_may_and_says_what_that_costs() -> None:
    cloudy = catalog(default_policy="cloud-first")
    found = simulate([past(), past("restricted")], catalog(), cloudy, NOTHING)
    assert (found.moved, found.crossings) == (1, 0)
    assert dict(found.after.tiers) == {"cloud": 1, "cpu": 1}
    assert found.after.cost_usd - found.before.cost_usd == pytest.approx(10.0)
    assert found.after.mean_finish_s is not None


def test_a_wall_that_is_taken_down_is_told() -> None:
    open_ = catalog(default_policy="cloud-first", privacy={"restricted": {"tiers": ["cpu", "gpu", "cloud"]}})
    found = simulate([past("restricted"), past()], catalog(), open_, NOTHING)
    assert (found.moved, found.crossings) == (2, 1)


def test_deadlines_are_held_against_when_jobs_came() -> None:
    """At home it takes some 25 s, as far as anybody knows; in the cloud 4 s."""
    jobs = [
        past(deadline_ms=5_000 + wanted_ms, max_output_tokens=256, number=wanted_ms)
        for wanted_ms in (1, 10_000, 60_000)
    ]
    jobs = [
        replace(job, accepted_ms=5_000, ended_ms=ended) for job, ended in zip(jobs, (5_001, 15_001, None), strict=True)
    ]
    found = simulate([*jobs, past()], catalog(), catalog(default_policy="cloud-first"), NOTHING)
    assert found.deadlines == 3
    assert (found.actual.in_time, found.before.in_time, found.after.in_time) == (1, 1, 2)


def test_lines_of_planned_batches_are_counted() -> None:
    found = simulate([replace(past(), planned=True), past()], catalog(), catalog(), NOTHING)
    assert (found.jobs, found.planned) == (2, 1)


def test_models_that_only_one_side_has_are_left_out() -> None:
    found = simulate([past()], catalog(), Catalog(), NOTHING)
    assert (found.jobs, found.unknown) == (0, 1)


def test_a_job_without_a_place_is_nowhere() -> None:
    closed = catalog(privacy={"internal": {"tiers": []}})
    found = simulate([past()], catalog(), closed, NOTHING)
    assert (dict(found.after.places), found.moved, found.crossings) == ({"nowhere": 1}, 1, 0)


@given(
    st.lists(st.sampled_from(PRIVACY_LABELS), min_size=1, max_size=20),
    st.sampled_from(["local-first", "cloud-first", "cheapest", "fastest", "best-quality", "weighted"]),
)
def test_no_policy_crosses_the_wall_by_itself(labels: list[Privacy], policy: str) -> None:
    jobs = [past(label, number) for number, label in enumerate(labels)]
    found = simulate(jobs, catalog(), catalog(default_policy=policy), NOTHING)
    assert found.crossings == 0
    assert found.after.places.total() == found.before.places.total() == len(labels)
