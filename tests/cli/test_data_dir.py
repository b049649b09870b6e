"""One owner at a time, and a file that says what runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fabric.cli.data_dir import hold, read_run, remove_run, write_run
from fabric.contracts.errors import ConfigError


def test_the_directory_is_private_and_out_of_git(tmp_path: Path) -> None:
    with hold(tmp_path / "a/b"):
        assert (tmp_path / "a/b").stat().st_mode & 0o777 == 0o700
        assert (tmp_path / "a/b/.gitignore").read_text() == "*\n"


def test_it_has_one_owner_at_a_time(tmp_path: Path) -> None:
    with hold(tmp_path), pytest.raises(ConfigError, match=rf"process {os.getpid()}\) uses the data directory"):
        hold(tmp_path).__enter__()
    with hold(tmp_path):
        pass


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"Can't write the data directory .*file/data \(Not a directory\)"):
        hold(tmp_path / "file/data").__enter__()


def test_run_is_read_while_its_supervisor_lives(tmp_path: Path) -> None:
    assert read_run(tmp_path) is None
    write_run(tmp_path, {"supervisor": os.getpid(), "processes": {}})
    assert read_run(tmp_path) == {"supervisor": os.getpid(), "processes": {}}
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    remove_run(tmp_path)
    assert read_run(tmp_path) is None


def test_run_of_a_dead_supervisor_counts_as_none(tmp_path: Path) -> None:
    dead = os.fork() or os._exit(0)
    os.waitpid(dead, 0)
    write_run(tmp_path, {"supervisor": dead})
    assert read_run(tmp_path) is None
