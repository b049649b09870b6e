"""What the month will have cost at its end, as far as the last weeks tell. Pure."""

from __future__ import annotations

from calendar import monthrange
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

#: Days that are looked back on. More are steadier, fewer follow a change sooner.
LOOK_BACK_DAYS = 28
#: With as many whole days each weekday has its own mean.
_BY_WEEKDAY = 14


@dataclass(frozen=True, slots=True)
class MonthForecast:
    """US dollars. ``forecast_usd`` is ``None`` before there is a whole day or a part of one to tell it from."""

    month: str
    spent_usd: float
    forecast_usd: float | None
    based_on_days: int  #: whole days that it was told from


def month_forecast(daily: Mapping[date, float], now: datetime) -> MonthForecast:
    """``daily``: cost of each day (UTC) that has any, for the month and ``LOOK_BACK_DAYS``.

    What is left of today and each day to come cost what such days did: the mean of the same weekday over the last
    four weeks, of any day where there are less than two weeks, or the rate of today where it is the first day.
    """
    now = now.astimezone(UTC)
    today = now.date()
    month = f"{today:%Y-%m}"
    spent = sum(
        usd for day, usd in daily.items() if (day.year, day.month) == (today.year, today.month) and day <= today
    )
    first = max(min(daily, default=today), today - timedelta(days=LOOK_BACK_DAYS))
    past = [first + timedelta(days=n) for n in range((today - first).days)]
    gone = (now - datetime(now.year, now.month, now.day, tzinfo=UTC)) / timedelta(days=1)
    left = [today + timedelta(days=n) for n in range(1, monthrange(today.year, today.month)[1] - today.day + 1)]
    if not past:
        if not spent or gone < 1 / 24:
            return MonthForecast(month, spent, None, 0)
        return MonthForecast(month, spent, spent + (1 - gone + len(left)) * daily.get(today, 0.0) / gone, 0)

    def usual(day: date) -> float:
        alike = [p for p in past if p.weekday() == day.weekday()] if len(past) >= _BY_WEEKDAY else past
        return sum(daily.get(p, 0.0) for p in alike) / len(alike)

    rest_of_today = usual(today) * (1 - gone)
    return MonthForecast(month, spent, spent + rest_of_today + sum(map(usual, left)), len(past))
