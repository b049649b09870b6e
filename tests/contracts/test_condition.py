"""Conditions: what may be said, and what is refused before any request comes."""

from __future__ import annotations

import re
import time

import pytest

from fabric.contracts.condition import Condition


@pytest.mark.parametrize(
    ("text", "values", "holds"),
    [
        ('model == "m"', {"model": "m"}, True),
        ('"pii" in tags', {"tags": ["pii"]}, True),
        ('tags.exists(t, t.startsWith("team-"))', {"tags": ["x", "team-a"]}, True),
        ("prompt_tokens > 100 || hour >= 22", {"prompt_tokens": 5, "hour": 23}, True),
        ('time >= "22:30"', {"time": "09:00"}, False),
        ('weekday in ["sat", "sun"]', {"weekday": "sun"}, True),
        ("load.gpu > 0.9", {"load.gpu": 1.5}, True),
        ('header.x_team == "a"', {"header.x_team": "a"}, True),
        ("!batch && size(entities) > 0", {"batch": False, "entities": ["email"]}, True),
    ],
)
def test_says_whether_it_holds(text: str, values: dict[str, object], holds: bool) -> None:
    assert Condition(text, ["x-team"]).true_of(values) is holds


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('modell == "m"', "unknown name `modell`"),
        ('header.x_other == "m"', "unknown name `header.x_other`"),
        ("open('/etc/passwd')", "unknown name `open`"),
        ("model == 1", "no matching overload"),
        ("prompt_tokens", "it is int, and not true or false"),
        ("model ==", "Syntax error"),
        ("model.__class__ == 1", "at character"),
    ],
)
def test_what_is_wrong_is_said_when_it_is_read(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        Condition(text, ["x-team"])


def test_knows_what_it_reads() -> None:
    condition = Condition('model == "m" && (load.cpu > 0.5 || tags.exists(tenant, tenant == "x"))')
    assert set(condition.reads) == {"model", "load.cpu", "tags"}


def test_one_that_cannot_be_worked_out_does_not_hold() -> None:
    assert not Condition('tags[3] == "x"').true_of({"tags": []})
    assert not Condition("prompt_tokens / max_tokens > 1").true_of({"prompt_tokens": 1, "max_tokens": 0})


def test_some_of_the_values_may_decide_already() -> None:
    condition = Condition('model == "m" && "x" in tags')
    assert condition.verdict({"model": "n"}) is False
    assert condition.verdict({"model": "m"}) is None
    assert condition.verdict({"model": "m", "tags": ["x"]}) is True


def test_patterns_take_linear_time() -> None:
    condition = Condition('tenant.matches("^(a+)+$")')
    started = time.perf_counter()
    assert not condition.true_of({"tenant": "a" * 10_000 + "b"})
    assert time.perf_counter() - started < 10, (
        "an engine that tries again and again would need longer than the universe"
    )
