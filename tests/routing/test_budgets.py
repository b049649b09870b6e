"""What is reserved of which budgets."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from fabric.contracts.budget import NANO
from fabric.contracts.catalog import Catalog
from fabric.contracts.errors import BudgetUsedUp
from fabric.contracts.job import JobSpec
from fabric.contracts.limits import KeyLimits
from fabric.routing.budgets import charged, charged_again

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
    assert charges == f"daily 2025-11-25 {2 * NANO} {NANO // 100} {END_MS} usd/all"
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


def test_tokens_are_those_of_the_prompt_and_the_longest_answers() -> None:
    tokens = {"name": "tokens", "tokens": 50_000, "window": "day", "tenant": "default"}
    job, charges = charged(spec(prompt_tokens=30, answers=2), catalog(tokens), NOW_MS)
    assert job.max_cost_usd is None  # it caps no money
    assert charges == f"tokens 2025-11-25 50000 2030 {END_MS} tokens/tenant"
    assert charged(spec(prompt_tokens=30, max_output_tokens=None), catalog(tokens), NOW_MS)[1].split()[3] == "4096"
    embedding = spec(prompt_tokens=30, max_output_tokens=None, endpoint="/v1/embeddings")
    assert charged(embedding, catalog(tokens), NOW_MS)[1].split()[3] == "30"


def test_a_keys_own_budgets_count_beside_the_others() -> None:
    own = KeyLimits(budget_usd=1, budget_tokens=9_000, budget_window="total").budgets("key_1")
    _, charges = charged(spec(key_id="key_1"), catalog(DAILY), NOW_MS, own)
    assert [line.split()[0] for line in charges.splitlines()] == ["daily", "key_1", "key_1.tokens"]
    assert KeyLimits(requests_per_minute=1).budgets("key_1") == ()


def test_what_is_dearer_than_a_whole_window_is_refused_for_good() -> None:
    with pytest.raises(BudgetUsedUp, match="whole budget tiny"):
        charged(spec(), catalog({"name": "tiny", "usd": 0.009}), NOW_MS)
    assert charged(spec(), catalog({"name": "tiny", "usd": 0.009, "hard": False}), NOW_MS)[1]


@pytest.mark.parametrize("amounts", [{}, {"usd": 1, "tokens": 1}])
def test_a_budget_is_in_one_unit(amounts: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match="give one of `usd` and `tokens`"):
        catalog({"name": "b", **amounts})


def test_what_comes_back_is_charged_to_the_windows_and_budgets_of_now() -> None:
    own = KeyLimits(budget_usd=5, budget_tokens=9_000, budget_window="hour").budgets("key_1")
    asked = spec(key_id="key_1")
    first, before = charged(asked, catalog(DAILY | {"usd": 3}, {"name": "gone", "usd": 1}), NOW_MS, own)
    assert [line.split()[1] for line in before.splitlines()] == ["2025-11-25", "2025-11", *["2025-11-25T12"] * 2]
    later_ms = NOW_MS + 60 * 86_400_000
    again, charges = charged_again(
        first, catalog(DAILY, {"name": "new", "usd": 1, "window": "total"}), later_ms, before
    )
    assert again == first
    found = [tuple(line.split()[:2]) for line in charges.splitlines()]
    now = "2026-01-24"
    assert found == [("daily", now), ("new", "total"), ("key_1", f"{now}T12"), ("key_1.tokens", f"{now}T12")]
    assert charges.splitlines()[0].split()[2] == str(2 * NANO)
    ends = [int(line.split()[4]) for line in charges.splitlines()]
    assert all(end == 0 or end > later_ms for end in ends)


def test_the_cap_of_its_batch_comes_back_with_a_line() -> None:
    line = spec(batch_id="batch_1")
    before = f"batch_1 total {NANO} 500 0 usd/batch\nbatch_2 total {NANO} 500 0 usd/batch"
    assert charged_again(line, catalog(), NOW_MS, before) == (line, f"batch_1 total {NANO} 500 0 usd/batch")
