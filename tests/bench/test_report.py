"""What a report says, and how figures are taken from samples."""

from __future__ import annotations

import json

import pytest
from benchmarks.inflight import SLOTS, steady_rate
from benchmarks.processes import Void
from benchmarks.questions import body, write_batch
from benchmarks.report import Budget, Report, Table, percentile


def test_the_json_line() -> None:
    budgets = [Budget("p50", 5, 3.0, "ms"), Budget("share", 97, 96.0, "%", at_least=True)]
    report = json.loads(Report("latency", 4.0, "ms", 0.5, budgets, (), {"p99_ms": 1.23456789}).json())
    assert report == {
        "name": "latency",
        "value": 4.0,
        "unit": "ms",
        "direct": 0.5,
        "ratio": 8.0,
        "met": False,
        "budgets": [
            {"what": "p50", "at_most": 5, "reached": 3.0, "unit": "ms", "met": True},
            {"what": "share", "at_least": 97, "reached": 96.0, "unit": "%", "met": False},
        ],
        "p99_ms": 1.2346,
    }


def test_without_a_direct_way_there_is_no_ratio() -> None:
    report = json.loads(Report("decision", 4.0, "us", None).json())
    assert report["direct"] is report["ratio"] is report["met"] is None


def test_the_table_lines_up() -> None:
    table = str(Table(("what", "direct", "fabric"), [("rate", 20_000.4, 1_396.2), ("p50, ms", 1.4837, None)]))
    assert table.splitlines() == [
        "what     direct  fabric",
        "rate     20,000   1,396",
        "p50, ms    1.48       -",
    ]


def test_percentiles() -> None:
    values = [float(n) for n in range(1, 101)]
    assert [percentile(values, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1, 51, 100, 100]
    assert percentile([7.0], 0.99) == 7


def test_the_steady_rate_leaves_out_both_ends() -> None:
    """Waves of all slots, half a second apart, after a slow start and before a straggler."""
    waves = [1_000 + 500 * wave for wave in range(8)]
    finished = [at + spread % 40 for at in waves for spread in range(SLOTS)]
    finished[:SLOTS] = [at - 900 for at in finished[:SLOTS]]
    finished[-1] += 5_000
    assert steady_rate(finished) == pytest.approx(2 * SLOTS, rel=1e-6)


def test_the_steady_rate_needs_enough_jobs() -> None:
    with pytest.raises(Void, match="too few"):
        steady_rate(list(range(2 * SLOTS)))


def test_a_question_is_a_kilobyte(tmp_path) -> None:
    assert 900 <= len(body("mock", 7)) <= 1_000
    write_batch(tmp_path / "in.jsonl", "mock", 3)
    lines = [json.loads(line) for line in (tmp_path / "in.jsonl").read_text().splitlines()]
    assert [line["custom_id"] for line in lines] == ["line-0", "line-1", "line-2"]
    assert lines[0]["body"] == json.loads(body("mock"))
