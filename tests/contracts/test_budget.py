"""Windows of budgets, and whom a budget is for."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fabric.contracts.budget import NANO, Budget, Period, period_of, window_at
from fabric.contracts.job import JobSpec

periods = st.sampled_from(["hour", "day", "month"])
moments = st.integers(0, 4_000_000_000_000)


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


@pytest.mark.parametrize(
    ("period", "name", "start", "end"),
    [
        ("hour", "2026-12-31T23", "2026-12-31T23:00", "2027-01-01T00:00"),
        ("day", "2026-12-31", "2026-12-31", "2027-01-01"),
        ("month", "2026-12", "2026-12-01", "2027-01-01"),
    ],
)
def test_windows_are_those_of_the_calendar(period: Period, name: str, start: str, end: str) -> None:
    window = window_at(period, ms("2026-12-31T23:59:59"))
    assert (window.name, window.start_ms, window.end_ms) == (name, ms(start), ms(end))


def test_a_total_never_ends() -> None:
    assert window_at("total", 1).end_ms is None


@given(periods, moments)
def test_every_moment_is_in_one_window_and_the_next_begins_at_its_end(period: Period, now_ms: int) -> None:
    window = window_at(period, now_ms)
    assert window.end_ms is not None
    assert window.start_ms <= now_ms < window.end_ms
    assert window_at(period, window.end_ms - 1) == window
    following = window_at(period, window.end_ms)
    assert following.start_ms == window.end_ms
    assert following.name > window.name


def test_whom_a_budget_is_for() -> None:
    spec = JobSpec("job_1", "/v1/chat/completions", "m", tenant="acme", key_id="key_1", tags=("night",))
    assert Budget(name="all", usd=1).covers(spec)
    for owner in ({"tenant": "acme"}, {"key": "key_1"}, {"tag": "night"}):
        assert Budget(name="b", usd=1, **owner).covers(spec)
    for owner in ({"tenant": "other"}, {"key": "key_2"}, {"tag": "day"}):
        assert not Budget(name="b", usd=1, **owner).covers(spec)
    with pytest.raises(ValidationError, match="one of `tenant`, `key` and `tag`"):
        Budget(name="b", usd=1, tenant="acme", tag="night")


def test_cents_are_whole() -> None:
    assert Budget(name="b", usd=0.1).limit * 3 == Budget(name="b", usd=0.3).limit == 3 * NANO // 10


@pytest.mark.parametrize("period", ["hour", "day", "month", "total"])
def test_a_windows_name_tells_its_period(period: Period) -> None:
    assert period_of(window_at(period, 1_764_072_000_000).name) == period
