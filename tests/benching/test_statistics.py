from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.bench.runs import Point, Run, Sample, compare, sparkline
from fabric.bench.statistics import change, quantile, share_change, share_interval

seconds = st.lists(st.floats(0.001, 100), min_size=2, max_size=30)


@given(seconds, st.floats(0, 1))
def test_a_quantile_lies_between_the_ends_and_rises(values: list[float], q: float) -> None:
    assert min(values) <= quantile(values, q) <= max(values) * (1 + 1e-9)
    assert quantile(values, 0) == min(values) and quantile(values, 1) == max(values)
    assert quantile(values, q / 2) <= quantile(values, q) * (1 + 1e-9)


@settings(max_examples=25, deadline=None)
@given(seconds)
def test_nothing_has_changed_between_a_run_and_itself(values: list[float]) -> None:
    found = change(values, values)
    assert found is not None and found.change == 0 and found.low <= 0 <= found.high


@settings(max_examples=25, deadline=None)
@given(seconds, st.floats(0.1, 10))
def test_a_change_doesnt_depend_on_the_unit(values: list[float], unit: float) -> None:
    one = change(values, values[::-1][: max(2, len(values) // 2)])
    other = change([v * unit for v in values], [v * unit for v in values[::-1][: max(2, len(values) // 2)]])
    assert one is not None and other is not None
    assert (one.change, one.low, one.high) == pytest.approx((other.change, other.low, other.high), abs=1e-6)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    draw = random.Random(1)
    held = 0
    for _ in range(60):
        before = [draw.gauss(1.0, 0.1) for _ in range(30)]
        after = [draw.gauss(1.2, 0.1) for _ in range(30)]
        found = change(before, after)
        assert found is not None
        held += found.low <= 0.2 <= found.high
    assert held >= 50


@pytest.mark.parametrize(("before", "after"), [([], [1.0, 2.0]), ([1.0], [1.0, 2.0]), ([0.0, 0.0], [1.0, 2.0])])
def test_too_little_says_nothing(before: list[float], after: list[float]) -> None:
    assert change(before, after) is None


def a_run(first_s: float, errors: int = 0, n: int = 20, cost: float = 0.001) -> Run:
    good = [Sample(1.0, first_s * (1 + i / 100), 0.01, 10, cost) for i in range(n - errors)]
    return Run("chat", {}, (Point("a", "m", 4, 2.0, (*good, *[Sample(0.1, error="unavailable")] * errors)),))


def verdicts(before: Run, after: Run) -> dict[str, str]:
    return {finding.figure: finding.verdict for finding in compare(before, after, 0.1)}


def test_what_is_slower_beyond_the_threshold_is_worse_and_only_that() -> None:
    found = verdicts(a_run(0.1), a_run(0.13))
    assert found == {
        "first_token_s": "worse",
        "between_tokens_s": "same",
        "seconds": "same",
        "cost_usd": "same",
        "error_rate": "same",
    }
    assert verdicts(a_run(0.1), a_run(0.104))["first_token_s"] == "same"
    assert verdicts(a_run(0.13), a_run(0.1))["first_token_s"] == "better"
    assert verdicts(a_run(0.1), a_run(0.1, cost=0.002))["cost_usd"] == "worse"


def test_errors_count_in_the_rate_and_not_as_quick_answers() -> None:
    found = verdicts(a_run(0.1), a_run(0.1, errors=5))
    assert found["error_rate"] == "worse" and found["seconds"] == "same"
    figures = a_run(0.1, errors=5).points[0].figures()
    assert (figures["error_rate"], figures["output_tokens_per_s"], figures["requests_per_s"]) == (0.25, 75.0, 7.5)
    assert figures["usd_per_million_output_tokens"] == pytest.approx(100.0)


def test_a_deployment_that_answers_nothing_has_no_figures() -> None:
    figures = a_run(0.1, errors=20).points[0].figures()
    assert figures["error_rate"] == 1.0 and figures["first_token_p50_s"] is None
    assert verdicts(a_run(0.1), a_run(0.1, errors=20))["first_token_s"] == "unknown"


def test_a_run_is_read_as_it_was_written() -> None:
    run = a_run(0.1, errors=2)
    assert Run.load(run.dump()) == run


def test_a_sparkline_rises_with_its_values() -> None:
    assert sparkline([1, 2, 3]) == "▁▅█" and sparkline([2, 2]) == "▁▁"


class TestShares:
    def test_of_few_none_and_all(self) -> None:
        assert share_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
        assert share_interval(5, 20) == pytest.approx((0.1119, 0.4687), abs=1e-4)
        assert share_interval(20, 20) == pytest.approx((0.8389, 1.0), abs=1e-4)

    def test_a_difference_as_in_newcombes_paper(self) -> None:
        """Table II of the paper, method 10: 56/70 and 48/80; 9/10 and 3/10; 0/10 and 0/20."""
        for after, before, low, high in (
            ((56, 70), (48, 80), 0.0524, 0.3339),
            ((9, 10), (3, 10), 0.1705, 0.8090),
            ((0, 10), (0, 20), -0.1611, 0.2775),
        ):
            found = share_change(before, after)
            assert found is not None
            assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)

    def test_there_is_nothing_to_share(self) -> None:
        assert share_change((0, 0), (1, 2)) is None

    def test_one_error_more_proves_nothing(self) -> None:
        assert verdicts(a_run(0.1, n=8), a_run(0.1, errors=1, n=8))["error_rate"] == "same"
