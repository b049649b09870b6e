"""``fabric policy simulate``: the ledger's jobs under another file."""

from __future__ import annotations

import json
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from fabric.cli.entry import run
from fabric.contracts.completion import Completion
from fabric.contracts.job import JobSpec, JobState, Measures, Usage
from fabric.contracts.terms import Privacy
from fabric.ledger import Ledger, batches, upgrade, usage
from fabric.ledger.batches import NewBatch

NOW = """
models:
  - name: m
    deployments:
      - {name: home, engine: mock, tier: cpu}
      - {name: away, engine: mock, tier: cloud, price: {output_per_million: 1000}}
"""
CLOUDY = NOW + "default_policy: cloud-first\n"
OPEN = CLOUDY + "privacy:\n  restricted: {tiers: [cpu, gpu, cloud]}\n"


def done(number: int, privacy: Privacy, ago_s: float) -> Completion:
    at_ms = int((time.time() - ago_s) * 1000)
    return Completion(
        entry_id=f"{number}-1",
        spec=JobSpec(id=f"job_{number:026}", endpoint="/v1/chat/completions", model="m", privacy=privacy),
        state=JobState.SUCCEEDED,
        attempt=1,
        deployment="home",
        tier="cpu",
        worker="w",
        accepted_ms=at_ms,
        dispatched_ms=at_ms,
        claimed_ms=at_ms,
        finished_ms=at_ms,
        measures=Measures(engine_s=1, usage=Usage(10, 1_000), cost_usd=0.5, machine_usd=0.5),
        error=None,
        result=None,
    )


@pytest.fixture(autouse=True)
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a configuration, a ledger of three jobs, and two files to try."""
    monkeypatch.chdir(tmp_path)
    url = f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    monkeypatch.setenv("FABRIC_DATABASE_URL", url)
    upgrade(url)
    with closing(Ledger(url)) as ledger:
        ledger.write(usage.add, [done(1, "internal", 60), done(2, "restricted", 60), done(3, "internal", 30 * 86_400)])
    for name, text in (("fabric", NOW), ("cloudy", CLOUDY), ("open", OPEN)):
        (tmp_path / f"{name}.yaml").write_text(text)
    return tmp_path


def test_what_would_change(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["policy", "simulate", "cloudy.yaml", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["jobs"], shown["moved"], shown["crossings"]) == (2, 1, 0)
    assert shown["before"]["deployments"] == {"home": 2}
    assert shown["after"]["tiers"] == {"cloud": 1, "cpu": 1}
    assert shown["cost_difference_usd"] == pytest.approx(1.0)
    assert shown["actual"]["cost_usd"] == 0


def test_how_far_back_and_how_many(capsys: pytest.CaptureFixture[str]) -> None:
    for options, jobs in ((["--since", "60d"], 3), (["--limit", "1"], 1)):
        assert run(["policy", "simulate", "cloudy.yaml", "--json", *options]) == 0
        assert json.loads(capsys.readouterr().out)["jobs"] == jobs
    assert run(["policy", "simulate", "cloudy.yaml", "--since", "whenever"]) == 2


def test_a_crossing_ends_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["policy", "simulate", "open.yaml"]) == 1
    shown = capsys.readouterr().out
    assert "2 jobs, 2 would go elsewhere than now, 1 label crossings" in shown
    assert "$2.0000" in shown


def test_deadlines_and_planned_batches(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    now = int(time.time() * 1000)
    with closing(Ledger(f"sqlite:///{house / 'ledger.sqlite3'}")) as ledger:
        for number, options in ((1, None), (2, '{"deadline_s": 60}')):
            new = NewBatch(f"batch_{number}", "default", None, "/v1/chat/completions", "f", "24h", None, now, now + 9)
            ledger.write(batches.create, replace(new, options=options))
        lines = [done(10 + number, "internal", 5) for number in range(4)]
        lines = [
            replace(
                line,
                spec=replace(
                    line.spec, batch_id=f"batch_{1 + number % 2}", line_no=number, deadline_ms=now + number - 6_000
                ),
                entry_id=f"{10 + number}-1",
            )
            for number, line in enumerate(lines)
        ]
        ledger.write(usage.add, lines)
    assert run(["policy", "simulate", "cloudy.yaml", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["jobs"], shown["planned"], shown["deadlines"]) == (6, 2, 4)
    assert shown["actual"]["in_time"] == 0 and shown["after"]["in_time"] == 0
    assert run(["policy", "simulate", "cloudy.yaml"]) == 0
    said = capsys.readouterr().out
    assert "2 of them are lines of batches that were planned as a whole" in said
    assert "0 of 4" in said


def test_a_wrong_file_is_told(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (house / "wrong.yaml").write_text("modells: []\n")
    assert run(["policy", "simulate", "wrong.yaml"]) == 78
    assert "wrong.yaml:1" in capsys.readouterr().err
