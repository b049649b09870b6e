"""What ``fabric status`` says of engines whose workers differ."""

from __future__ import annotations

import pytest

from fabric.cli.status import _print_errors, _states


@pytest.mark.parametrize(
    ("states", "said"),
    [({}, None), ({"loaded": 3}, "loaded"), ({"loaded": 2, "away": 1}, "1 away, 2 loaded")],
)
def test_states(states: dict[str, int], said: str | None) -> None:
    assert _states({"states": states}) == said


def test_how_wrong_predictions_were(capsys: pytest.CaptureFixture[str]) -> None:
    _print_errors([{"tier": "gpu"}, {"tier": "cpu", "prediction_error": {"first_token": {"p50": None, "p90": None}}}])
    assert capsys.readouterr().out == ""
    errors = {"first_token": {"p50": None, "p90": None}, "finish": {"p50": 0.123, "p90": 0.4}}
    _print_errors([{"tier": "cpu", "prediction_error": errors}])
    assert capsys.readouterr().out.split("\n")[-2].split() == ["cpu", "finish", "12%", "40%"]
