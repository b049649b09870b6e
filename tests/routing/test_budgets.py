"""What is reserved of which budgets."""

from __future__ import annotations

from typing import Any

from fabric.contracts.budget import NANO
from fabric.contracts.catalog import Catalog
from fabric.contracts.job import JobSpec
from fabric.routing.budgets import charged

NOW_MS = 1_764_072_000_000  # 2025-11-25 12:00 UTC
END_MS = 1_764_115_200_000


def catalog(*budgets: dict[str, Any]) -> Catalog:
    cheap = {"output_per_million": 1.0}
    dear = {"output_per_million": 10.0}
    return Catalog.model_validate(
        {
            "models": [
                {
                    "name": "m",
                    "deployments": [
                        {"name": "free", "engine": "mock", "tier": "cpu"},
                        {"name": "cheap", "engine": "mock", "tier": "cloud", "price": cheap},
                        {"name": "dear", "engine": "mock", "tier": "cloud", "price": dear},
                    ],
                }
            ],
            "budgets": budgets,
        }
    )


def spec(**fields: Any) -> JobSpec:
    values = {"id": "job_1", "endpoint": "/v1/chat/completions", "model": "m", "max_output_tokens": 1_000}
    return JobSpec(**(values | fields))


DAILY = {"name": "daily", "usd": 2, "window": "day"}


def test_without_budgets_a_job_stays_as_it_is() -> None:
    assert charged(spec(), catalog(), NOW_MS) == (spec(), "")
    other = catalog({"name": "other", "usd": 1, "tenant": "other"})
    assert charged(spec(), other, NOW_MS) == (spec(), "")


def test_the_dearest_permitted_place_counts_and_becomes_the_cap() -> None:
    job, charges = charged(spec(), catalog(DAILY), NOW_MS)
    assert charges == f"daily 2025-11-25 {2 * NANO} {NANO // 100} {END_MS}"
    assert job.max_cost_usd == 0.01


def test_a_label_that_keeps_it_home_reserves_nothing() -> None:
    job, charges = charged(spec(privacy="restricted"), catalog(DAILY), NOW_MS)
    assert (job.max_cost_usd, charges) == (0, "")


def test_the_requests_own_cap_counts_where_it_is_less() -> None:
    assert charged(spec(max_cost_usd=0.002), catalog(DAILY), NOW_MS)[1].split()[3] == str(NANO // 500)
    assert charged(spec(max_cost_usd=0.5), catalog(DAILY), NOW_MS)[0].max_cost_usd == 0.01


def test_one_that_only_counts_has_no_limit_and_caps_nothing() -> None:
    job, charges = charged(spec(), catalog(DAILY | {"hard": False}), NOW_MS)
    assert charges.split()[2] == "-"
    assert job.max_cost_usd is None


def test_every_budget_that_is_meant_has_a_line() -> None:
    several = catalog(
        DAILY, {"name": "tagged", "usd": 1, "window": "total", "tag": "t"}, {"name": "x", "usd": 1, "tag": "x"}
    )
    _, charges = charged(spec(tags=("t",)), several, NOW_MS)
    assert [line.split()[0] for line in charges.splitlines()] == ["daily", "tagged"]
