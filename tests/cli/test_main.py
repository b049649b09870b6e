"""The command line as a whole: errors, statuses, and how quickly it starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fabric.cli.entry import _COMMANDS, run

ENVIRON = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_help_names_every_command_and_imports_little(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in _COMMANDS)
    code = "import sys; from fabric.cli import main\ntry: main(['--help'])\nexcept SystemExit: print(*sys.modules)"
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=ENVIRON).stdout
    loaded = set(output.split())
    assert not loaded & {"pydantic", "httpx", "rich", "yaml", "redis", "celery", "fastapi", "sqlalchemy"}


@pytest.mark.parametrize("name", _COMMANDS)
def test_every_command_has_help_that_begins_as_in_the_list(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, "--help"]) == 0
    assert _COMMANDS[name][1].rstrip(".") in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["nosuch"], 2, "error: No such command 'nosuch'.\nhint: fabric --help\n"),
        (["jobs", "ls", "--limit", "0"], 2, "error: Invalid value for '--limit': 0 is not in the range x>=1.\nhint:"),
        (["up", "--config", "none.yaml"], 78, "error: Can't read the configuration file"),
        (["up", "--host", "0.0.0.0"], 78, "error: FABRIC_HOST is 0.0.0.0: everyone who reaches this machine"),
        (["api", "--host", "::"], 78, "error: FABRIC_HOST is ::: everyone who reaches this machine"),
        (["worker", "gpu"], 78, "error: The catalogue has no deployment of tier gpu"),
    ],
)
def test_what_is_wrong_is_said_with_a_status(
    arguments: list[str], status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == status
    assert capsys.readouterr().err.startswith(said)


def test_a_fabric_that_does_not_run_gives_a_hint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FABRIC_URL", "http://127.0.0.1:9")
    assert run(["submit", "hello", "--model", "m"]) == 1
    assert capsys.readouterr().err == (
        "error: Can't reach the fabric at http://127.0.0.1:9: nothing listens there.\n"
        "hint: start one with `fabric up`, or say with FABRIC_URL where it is\n"
    )


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    shell = f"{sys.executable} -m fabric.cli --help | true"
    ended = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=False, env=ENVIRON)
    assert ended.stderr == ""
