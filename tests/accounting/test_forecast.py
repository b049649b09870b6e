"""What the month will have cost: never less than it has, and right where days are alike."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.accounting.forecast import month_forecast

NOON = datetime(2026, 11, 10, 12, tzinfo=UTC)


def days(count: int, usd: float = 2.0) -> dict[date, float]:
    return {NOON.date() - timedelta(days=n): usd for n in range(1, count + 1)}


def test_days_that_are_alike_go_on() -> None:
    found = month_forecast({**days(40), NOON.date(): 1.0}, NOON)
    assert (found.month, found.spent_usd, found.based_on_days) == ("2026-11", 9 * 2.0 + 1.0, 28)
    assert found.forecast_usd == pytest.approx(60)


def test_weekends_are_their_own() -> None:
    working = {day: 0.0 if day.weekday() >= 5 else 10.0 for day in days(40)}
    found = month_forecast(working, NOON)
    workdays = sum(date(2026, 11, d).weekday() < 5 for d in range(1, 31))
    assert found.forecast_usd == pytest.approx(10.0 * (workdays - 0.5))  # nothing was spent this morning


def test_the_first_day_is_told_from_its_rate() -> None:
    first = datetime(2026, 11, 1, 6, tzinfo=UTC)
    assert month_forecast({first.date(): 1.0}, first).forecast_usd == pytest.approx(4.0 * 30)
    assert month_forecast({first.date(): 1.0}, first.replace(hour=0)).forecast_usd is None
    assert month_forecast({}, first).forecast_usd is None


def test_days_without_anything_count_as_nothing() -> None:
    found = month_forecast({NOON.date() - timedelta(days=10): 10.0}, NOON)
    assert (found.spent_usd, found.based_on_days) == (0.0, 10)
    assert found.forecast_usd == pytest.approx(20.5)


@given(
    st.dictionaries(st.integers(0, 60), st.floats(0, 1e6), max_size=40),
    st.datetimes(datetime(2026, 1, 1), datetime(2027, 12, 31)),
)
def test_it_is_never_less_than_was_spent(spent: dict[int, float], now: datetime) -> None:
    daily = {now.date() - timedelta(days=ago): usd for ago, usd in spent.items()}
    found = month_forecast(daily, now.replace(tzinfo=UTC))
    assert found.spent_usd >= 0
    assert found.forecast_usd is None or found.forecast_usd >= found.spent_usd * (1 - 1e-9)
