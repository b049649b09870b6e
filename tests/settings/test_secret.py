"""The fabric's secret: given, or made once and kept where only its owner can read it."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fabric import settings
from fabric.contracts.errors import ConfigError
from fabric.settings.secret import secrets_of


def load(folder: Path, **variables: str) -> settings.Settings:
    return settings.load(environ={"FABRIC_DATA_DIR": str(folder), **variables})


def test_it_is_made_once_and_kept(tmp_path: Path) -> None:
    made = secrets_of(load(tmp_path / "data"))
    assert secrets_of(load(tmp_path / "data")).id == made.id
    assert secrets_of(load(tmp_path / "other")).id != made.id
    file = tmp_path / "data" / "secret"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["secret"]


def test_processes_that_start_together_have_the_same(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        ids = {secrets.id for secrets in threads.map(lambda _: secrets_of(load(tmp_path)), range(16))}
    assert len(ids) == 1


def test_the_environment_goes_first(tmp_path: Path) -> None:
    given = secrets_of(load(tmp_path, FABRIC_SECRET="x" * 40))
    assert given.id == secrets_of(load(tmp_path / "elsewhere", FABRIC_SECRET="x" * 40)).id
    assert not (tmp_path / "secret").exists()


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    secrets_of(load(tmp_path))
    (tmp_path / "secret").chmod(0o644)
    with pytest.raises(ConfigError, match="Others can read the fabric's secret: chmod 600"):
        secrets_of(load(tmp_path))


def test_where_it_cant_be_kept_it_must_be_given(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="give the same FABRIC_SECRET to every process"):
        secrets_of(load(tmp_path / "file" / "below"))


def test_settings_dont_show_it(tmp_path: Path) -> None:
    assert "x" * 40 not in repr(load(tmp_path, FABRIC_SECRET="x" * 40))
