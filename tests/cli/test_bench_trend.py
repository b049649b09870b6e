"""``fabric bench trend``: runs over time, in a table, as JSON, and on a page that needs nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fabric.bench.trend import FIGURES, Load, changes, trend
from fabric.cli.bench import bench


def run(date: str, *, workload: str = "chat", deployment: str = "small", **figures: float | None) -> dict[str, Any]:
    point = {"deployment": deployment, "concurrency": 2, **dict.fromkeys(FIGURES), **figures}
    return {"workload": workload, "about": {"date": date}, "points": [point]}


RUNS = [
    run("2026-11-02T09:00:00+00:00", first_token_p50_s=0.15, output_tokens_per_s=40, error_rate=0.02),
    run("2026-11-01T09:00:00+00:00", first_token_p50_s=0.10, output_tokens_per_s=50, error_rate=0.0),
    run("2026-11-02T10:00:00+00:00", deployment="<b>big</b>", usd_per_million_output_tokens=3.5),
]
SMALL = Load("chat", "small", 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "history.jsonl").write_text("".join(json.dumps(one) + "\n" for one in RUNS))
    for name in ("before", "first"):
        (tmp_path / f"{name}.json").write_text(json.dumps(RUNS[1]))
    (tmp_path / "latest.json").write_text(json.dumps(RUNS[0]))
    return tmp_path


def ran(folder: Path, *arguments: str) -> str:
    result = CliRunner().invoke(bench, ["trend", "--file", str(folder), *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_each_run_is_held_against_the_one_before() -> None:
    first, second = trend(RUNS, {"2026-11-01T09:00:00+00:00": "before"})[SMALL]
    assert (first.date[:10], first.name, first.change) == ("2026-11-01", "before", {})
    assert second.change == pytest.approx({"first_token_p50_s": 0.5, "output_tokens_per_s": -0.2, "error_rate": 0.02})
    assert [entry.date[:10] for entry in trend(RUNS, {}, last=1)[SMALL]] == ["2026-11-02"]


def test_what_cant_be_told_has_no_change() -> None:
    assert changes({"first_token_p50_s": 0.0, "error_rate": None}, {"first_token_p50_s": 1.0, "error_rate": 0.1}) == {}


def test_the_table_has_a_line_a_run(folder: Path) -> None:
    shown = ran(folder, "--deployment", "small").splitlines()
    assert shown[0] == "chat: small, 2 at once   ▁█ first_token_p50_s"
    assert re.split(" {2,}", shown[1])[:4] == ["RUN", "NAME", "FIRST TOKEN", "CHANGE"]
    assert re.split(" {2,}", shown[2]) == [
        *("2026-11-01 09:00", "before, first", "0.1", "-", "-", "50", "-", "-", "0.0%"),
    ]
    assert re.split(" {2,}", shown[3]) == ["2026-11-02 09:00", "-", "0.15", "+50.0%", "-", "40", "-20.0%", "-", "2.0%"]
    assert len(shown) == 4


def test_programs_get_all_figures(folder: Path) -> None:
    big, small = json.loads(ran(folder, "--json"))
    assert (big["deployment"], small["workload"], small["concurrency"]) == ("<b>big</b>", "chat", 2)
    assert small["runs"][0]["name"] == "before, first"
    assert small["runs"][1]["change"]["first_token_p50_s"] == pytest.approx(0.5)


def test_the_page_is_whole_and_says_names_as_text(folder: Path, tmp_path: Path) -> None:
    assert ran(folder, "--html", str(tmp_path / "trend.html")) == ""
    page = (tmp_path / "trend.html").read_text()
    assert page.count('<svg viewBox="0 0 920') == 4 and page.count("<circle") == 7, "figures that some run has"
    assert "before, first: small, 2 at once: 100 ms" in page and "&lt;b&gt;big&lt;/b&gt;" in page
    assert "<b>" not in page and not re.search(r"(?:src|href)=|https?://|@import", page)


def test_without_runs_it_says_how_to_make_one(tmp_path: Path) -> None:
    assert "fabric bench run" in ran(tmp_path)
    ran(tmp_path, "--html", str(tmp_path / "empty.html"))
    assert "fabric bench run" in (tmp_path / "empty.html").read_text()


def test_a_history_that_cant_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").write_text('{"points": 1}\n')
    result = CliRunner().invoke(bench, ["trend", "--file", str(tmp_path)])
    assert "history.jsonl can't be read" in str(result.exception)
