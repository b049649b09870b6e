"""The table of failures: what it says, and that the page shows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fabric.contracts import errors, failures
from fabric.contracts.errors import FabricError
from fabric.contracts.failures import Handling, end_for_breaker, handling

PAGE = Path(__file__).parents[2] / "docs" / "fallback.md"


def test_the_page_shows_the_table() -> None:
    assert failures.markdown() in PAGE.read_text("utf-8")


def test_it_has_everything_that_can_happen_in_an_engine() -> None:
    named = {row.error for row in failures.TABLE}
    for base in (errors.EngineError, errors.ProviderError):
        assert {base, *base.__subclasses__()} <= named
    assert errors.ContentRefused in named


@pytest.mark.parametrize("row", failures.TABLE, ids=lambda row: row.error.__name__)
def test_laws(row: failures.Row) -> None:
    info = row.error("x").info
    found = handling(info)
    if info.fault == "caller":
        assert found.retry == "no"
        assert not found.breaker
    if found.fall_back in ("larger_window", "by_policy"):
        assert info.fault == "caller"
    assert not (found.retry == "wait" and found.breaker), "a place that is full isn't sick"


@pytest.mark.parametrize(
    ("error", "first", "later"),
    [
        (errors.EngineError, "bad", "neutral"),
        (errors.EngineTimeout, "bad", "neutral"),
        (errors.ProviderError, "bad", "neutral"),
        (errors.EngineUnavailable, "bad", "bad"),
        (errors.ProviderUnavailable, "bad", "bad"),
        (errors.RateLimited, "neutral", "neutral"),
        (errors.EngineRejected, "neutral", "neutral"),
    ],
)
def test_of_one_job_only_the_first_failure_counts_for_the_breaker(
    error: type[FabricError], first: str, later: str
) -> None:
    assert [end_for_breaker(error("x").info, failures) for failures in (0, 1, 2)] == [first, later, later]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errors.EngineError, Handling("backoff", True, "any")),
        (errors.RateLimited, Handling("wait", False, "any")),
        (errors.ProviderAuth, Handling("no", True, "any")),
        (errors.ContextOverflow, Handling("no", False, "larger_window")),
        (errors.ContentRefused, Handling("no", False, "by_policy")),
        (errors.EngineRejected, Handling("no", False, "no")),
        (errors.StreamBroken, Handling("no", True, "no")),
    ],
)
def test_some_of_it(error: type[FabricError], expected: Handling) -> None:
    assert handling(error("x").info) == expected
