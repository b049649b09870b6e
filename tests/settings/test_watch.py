"""A configuration file that changes while the fabric runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from fabric import settings
from fabric.contracts.catalog import Catalog
from fabric.settings.watch import Watch

ONE = "models:\n  - name: one\n    deployments:\n      - {engine: mock, tier: cpu}\n"
TWO = ONE.replace("one", "two")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "fabric.yaml"
    path.write_text(ONE)
    return path


def watch(path: Path | None, wait_s: float = 0.0) -> Watch:
    return Watch(settings.load(path, {}), {}, look_s=0, wait_s=wait_s)


def names(catalog: Catalog | None) -> list[str]:
    return [] if catalog is None else list(catalog.by_model)


def test_a_change_counts_once_two_looks_agree(file: Path) -> None:
    watched = watch(file)
    assert watched.look() is None
    file.write_text(TWO)
    assert watched.look() is None, "an editor may be half way through it"
    assert names(watched.look()) == ["two"]
    assert watched.look() is None


def test_a_file_that_is_still_being_written_does_not_count(file: Path) -> None:
    watched = watch(file)
    for text in (TWO, TWO + "privacy: {}\n", TWO + "privacy: {restricted: {tiers: [gpu]}}\n"):
        file.write_text(text)
        assert watched.look() is None
    changed = watched.look()
    assert changed is not None
    assert changed.privacy.restricted.tiers == ("gpu",)


@pytest.mark.parametrize(
    "broken", ["models: [", "modls: []\n", TWO + 'rules:\n  - {when: modell == "x", deny: "no"}\n']
)
def test_a_broken_file_changes_nothing_and_is_complained_of(
    file: Path, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    watched = watch(file)
    file.write_text(broken)
    for _ in range(4):
        assert watched.look() is None
    assert watched.problem is not None
    assert str(file) in watched.problem
    assert watched.failures == 1, "once, however often it is looked at"
    assert [record.message.startswith("the configuration stays as it was") for record in caplog.records] == [True]
    file.write_text(TWO)
    watched.look()
    assert names(watched.look()) == ["two"]
    assert watched.problem is None


def test_a_broken_file_that_is_put_back_is_no_change(file: Path) -> None:
    watched = watch(file)
    for text in ("models: [", ONE):
        file.write_text(text)
        assert [watched.look(), watched.look()] == [None, None]
    assert (watched.problem, watched.failures) == (None, 1)


def test_a_file_that_is_gone_is_a_problem(file: Path) -> None:
    watched = watch(file)
    file.unlink()
    assert [watched.look(), watched.look()] == [None, None]
    assert watched.problem is not None


def test_what_needs_a_restart_is_said(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    watched = watch(file)
    file.write_text("port: 9999\n" + ONE)
    assert [watched.look(), watched.look()] == [None, None]
    assert "a restart is needed for port" in caplog.text


def test_a_change_can_be_held_back(file: Path) -> None:
    watched = watch(file, wait_s=3600)
    file.write_text(TWO)
    assert [watched.look() for _ in range(3)] == [None] * 3
    soon = watch(file, wait_s=0.01)
    file.write_text(ONE)
    found: list[str] = []
    while not found:
        found = names(soon.look())
    assert found == ["one"]


def test_without_a_file_there_is_nothing_to_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    watched = watch(None)
    Path("fabric.yaml").write_text(TWO)
    assert [watched.look(), watched.look()] == [None, None]
