"""``fabric batch estimate``: a file's cost and time from dry runs, with nothing left behind."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fabric.cli.batch_estimate import kinds_of
from fabric.cli.entry import run
from fabric.contracts.catalog import Catalog
from fabric.store import Store, counts, reads

if TYPE_CHECKING:
    from fabric.gateway import GatewaySettings
    from tests.gateway.conftest import Served, Worker


def line(number: int, text: str = "hello", **fields: Any) -> str:
    body = {"model": "small", "messages": [{"role": "user", "content": text}], "max_tokens": 10, **fields}
    values = {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(values) + "\n"


@pytest.fixture
def priced(settings: GatewaySettings, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch) -> Served:
    """Ten dollars per million output tokens, and nothing for the input."""
    price = {"output_per_million": 10.0}
    deployment = {"engine": "mock", "tier": "cpu", "capabilities": ["chat"], "price": price}
    catalog = Catalog.model_validate({"models": [{"name": "small", "deployments": [deployment]}]})
    served: Served = serve(replace(settings, catalog=catalog))
    monkeypatch.setenv("FABRIC_URL", served.url)
    return served


def estimated(file: Path, text: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    file.write_text(text)
    assert run(["batch", "estimate", str(file), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_lines_are_added_up(
    priced: Served, worker: Worker, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "".join(line(n, "x" * (n % 7), max_tokens=10 if n % 2 else 20) for n in range(100))
    found = estimated(tmp_path / "in.jsonl", lines + "\n", capsys)
    assert found["expected_cost_usd"] == pytest.approx(50 * 10 * 1e-5 + 50 * 20 * 1e-5)
    assert (found["lines"], found["unreadable_lines"], found["refused_lines"]) == (100, 0, 0)
    (place,) = found["places"]
    assert (place["deployment"], place["lines"]) == ("small-cpu", 100)
    assert found["expected_finish_s"] > 0
    nothing_yet = {"actual_to_expected": None, "prediction_error": None, "finish_error": {}}
    assert found["earlier"] == {"since": "30d", **nothing_yet}
    assert store(reads.live_count()) == 0


def test_how_wrong_earlier_ends_were_is_told(
    priced: Served, worker: Worker, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    amounts = defaultdict[str, float](float)
    for actual_s in (1.0, 1.0, 1.6):
        counts.mispredicted(amounts, "finish", "cpu", 1.2, actual_s)
        counts.mispredicted(amounts, "finish", "gpu", 9.0, actual_s)
    store(counts.add(amounts))
    found = estimated(tmp_path / "in.jsonl", line(1), capsys)
    assert found["earlier"]["finish_error"].keys() == {"cpu"}, "of the places that its lines would go to"
    assert 0.1 < found["earlier"]["finish_error"]["cpu"]["p50"] < 0.3
    assert run(["batch", "estimate", str(tmp_path / "in.jsonl")]) == 0
    assert "earlier answers of cpu came" in capsys.readouterr().out


def test_with_a_deadline_and_a_cap_it_is_the_plans(
    priced: Served, worker: Worker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text("".join(line(n) for n in range(100)))

    def asked(*options: str) -> dict[str, Any]:
        assert run(["batch", "estimate", str(file), "--json", *options]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    found = asked("--deadline", "1d")
    assert (found["places"][0]["lines"], found["shortfall"]) == (100, None)
    assert found["expected_cost_usd"] == pytest.approx(100 * 10 * 1e-5)
    found = asked("--deadline", "1d", "--max-cost", "0.004")
    assert found["places"][0]["lines"] == 40
    assert (found["shortfall"]["reason"], found["shortfall"]["lines"]) == ("cap", 60)
    assert found["shortfall"]["in_time_usd"] == pytest.approx(0.01)
    assert run(["batch", "estimate", str(file), "--max-cost", "0.004"]) == 0
    assert "not all can be done: too little money for 60 lines" in capsys.readouterr().out


def test_what_would_not_run_is_said(priced: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = line(1) + "no json\n" + '{"custom_id": "x"}\n' + line(2, model="none") + line(3, max_tokens=10_000)
    found = estimated(tmp_path / "in.jsonl", lines, capsys)
    assert (found["lines"], found["unreadable_lines"], found["refused_lines"]) == (3, 2, 2)
    assert found["expected_finish_s"] is None  # nobody works
    assert run(["batch", "estimate", str(tmp_path / "in.jsonl")]) == 0
    said = capsys.readouterr().out
    assert "2 lines can't be read" in said
    assert "1 lines would be refused: The model `none` doesn't exist here." in said


def test_alike_is_what_differs_by_a_few_words() -> None:
    lines = [line(n, "word " * (100 + n % 5)).encode() for n in range(1000)]
    lines += [line(n, "word " * 1000).encode() for n in range(10)]
    lines += [line(n, temperature=0.5).encode() for n in range(5)]
    kinds, unreadable = kinds_of(lines)
    assert sum(kind.lines for kind in kinds) == 1015
    assert (3 <= len(kinds) <= 5, unreadable) == (True, 0)
