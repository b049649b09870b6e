"""``fabric dlq``: how dead letters are chosen. What it does to them is in ``tests/e2e/test_fallback.py``."""

from __future__ import annotations

import pytest

from fabric.cli.entry import run


@pytest.mark.parametrize("command", ["replay", "drop"])
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Name jobs, or choose them"),
        (["job_1", "--all"], "not both"),
        (["job_1", "--reason", "engine_error"], "not both"),
        (["--older-than", "soon"], "'soon' is no age"),
        (["--tier", "moon"], "'moon' is not one of"),
    ],
)
def test_a_choice_that_makes_no_sense_touches_nothing(
    command: str, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FABRIC_URL", "http://127.0.0.1:1")
    assert run(["dlq", command, *arguments]) == 2
    assert said in capsys.readouterr().err
