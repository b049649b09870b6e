"""Numbers, times and the line of a job's time. Pure."""

from __future__ import annotations

from typing import Any

import pytest

from fabric.gateway.console import words
from fabric.gateway.console.story import story


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "–"),
        (0, "0 s"),
        (0.0015, "1.5 ms"),
        (0.34, "340 ms"),
        (0.9999, "1.0 s"),
        (2.44, "2.4 s"),
        (59.97, "1 min"),
        (61, "1 min 1 s"),
        (3_600, "1 h"),
        (11_100, "3 h 5 min"),
        (200_000, "2 d 7 h"),
    ],
)
def test_seconds(value: float | None, said: str) -> None:
    assert words.seconds(value) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "–"),
        (0, "$0.00"),
        (0.000002, "$0.000002"),
        (0.01234, "$0.0123"),
        (0.5, "$0.50"),
        (12.345, "$12.35"),
        (1234567, "$1,234,567.00"),
        (-0.25, "−$0.25"),
    ],
)
def test_dollars(value: float | None, said: str) -> None:
    assert words.dollars(value) == said


@pytest.mark.parametrize(("value", "said"), [(None, "–"), (0, "0%"), (0.004, "0.4%"), (0.5, "50%"), (1, "100%")])
def test_shares(value: float | None, said: str) -> None:
    assert words.share(value) == said


def _job(**changed: Any) -> dict[str, Any]:
    attempt = {"deployment": "d", "dispatched_ms": 1_100, "claimed_ms": 1_200, "ended_ms": 2_000}
    return {"accepted_ms": 1_000, "attempts": [attempt], "finished_ms": 2_000, "state": "succeeded", **changed}


def test_a_story_has_every_second_once() -> None:
    told = story(_job(), 9_000)
    assert [(part.kind, part.seconds) for part in told.parts] == [("backlog", 0.1), ("queue", 0.1), ("engine", 0.8)]
    assert told.seconds == 1.0 and told.parts[-1].start == 20.0 and told.parts[-1].width == 80.0


def test_a_story_that_goes_on_ends_now() -> None:
    attempt = {"deployment": "d", "dispatched_ms": 1_100, "claimed_ms": 1_200, "ended_ms": None}
    running = story(_job(attempts=[attempt], finished_ms=None, state="running"), 3_200)
    assert (running.parts[-1].kind, running.parts[-1].seconds, running.parts[-1].place) == ("engine", 2.0, "d")
    waiting = story(_job(attempts=[], finished_ms=None, state="queued"), 3_000)
    assert [(part.kind, part.seconds) for part in waiting.parts] == [("backlog", 2.0)]


def test_a_second_try_that_outran_the_first_adds_no_time() -> None:
    first = {"deployment": "a", "dispatched_ms": 1_100, "claimed_ms": 1_200, "ended_ms": 2_000}
    second = {"deployment": "b", "dispatched_ms": 1_500, "claimed_ms": 1_600, "ended_ms": 2_000}
    told = story(_job(attempts=[first, second]), 9_000)
    assert [(part.kind, part.place) for part in told.parts] == [("backlog", None), ("queue", "a"), ("engine", "a")]


def test_a_time_of_day_has_milliseconds() -> None:
    assert words.clock(86_400_000 + 3_661_007) == "01:01:01.007"


def test_a_clock_that_ran_backwards_adds_nothing() -> None:
    attempt = {"deployment": "d", "dispatched_ms": 900, "claimed_ms": 1_200, "ended_ms": 1_100}
    assert story(_job(attempts=[attempt], finished_ms=1_200), 9_000).seconds == 0.2
