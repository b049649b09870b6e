"""The one log: how lines of all programs are read, and where they go."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path

import pytest

from fabric.cli.journal import Journal, Line, parse
from tests.conftest import SmallDisk


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("2026-11-24 15:57:29.123 WARNING it is late", Line("WARNING", "it is late")),
        ("ERROR: it broke", Line("ERROR", "it broke")),
        ("plain words", Line("INFO", "plain words")),
        ("error: no such file", Line("ERROR", "error: no such file")),
        ("123:M 24 Nov 2026 15:57:29.123 * Ready to accept connections", Line("DEBUG", "Ready to accept connections")),
        ("123:M 24 Nov 2026 15:57:29.123 # Out of memory", Line("WARNING", "Out of memory")),
        ("INFORMATION is no level", Line("INFO", "INFORMATION is no level")),
    ],
)
def test_a_line_has_a_level(text: str, line: Line) -> None:
    assert parse(text) == line


def test_a_line_without_a_level_goes_on_with_the_last_one() -> None:
    assert parse("Traceback (most recent call last):", "ERROR").level == "ERROR"


def test_the_terminal_shows_from_its_level_on_and_the_file_everything(tmp_path: Path) -> None:
    terminal = io.StringIO()
    journal = Journal(tmp_path / "fabric.log", terminal, level="WARNING")
    journal.write("api", "INFO", "quiet")
    journal.write("api", "ERROR", "loud")
    journal.close()
    assert [line.split(maxsplit=2)[2] for line in terminal.getvalue().splitlines()] == ["api          ERROR   loud"]
    assert [line.rsplit(" ", 1)[1] for line in (tmp_path / "fabric.log").read_text().splitlines()] == ["quiet", "loud"]


def test_a_terminal_that_nobody_reads_does_not_stop_the_log(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as reader, os.fdopen(write_end, "w") as stuck:
        journal = Journal(tmp_path / "fabric.log", stuck)
        for number in range(12_000):
            journal.write("api", "INFO", f"line {number}")
        last_line = (tmp_path / "fabric.log").read_text().splitlines()[-1]
        assert last_line.endswith("line 11999")
        threading.Thread(target=reader.read, daemon=True).start()  # lets the writer go on
        journal.close()


def test_a_full_disk_is_no_traceback_for_each_line(small_disk: SmallDisk, capsys: pytest.CaptureFixture[str]) -> None:
    terminal = io.StringIO()
    journal = Journal(small_disk.folder / "log", terminal)
    small_disk.fill()
    for number in range(100):
        journal.write("api", "INFO", f"{number} {'x' * 200}")
    small_disk.free()
    journal.write("api", "INFO", "there is room")
    journal.close()
    assert capsys.readouterr().err == ""
    assert terminal.getvalue().count("\n") == 101
    assert (small_disk.folder / "log").read_text().endswith("there is room\n")


def test_the_file_is_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fabric.cli.journal._FILE_BYTES", 1_000)
    journal = Journal(tmp_path / "fabric.log", io.StringIO())
    for number in range(100):
        journal.write("api", "INFO", f"line {number}")
    journal.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "fabric.log",
        "fabric.log.1",
        "fabric.log.2",
        "fabric.log.3",
    ]
    assert all(path.stat().st_size <= 1_000 for path in tmp_path.iterdir())
