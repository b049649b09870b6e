"""docs/deployment.md: what it tells people to type and to look at is there."""

from __future__ import annotations

import re
import shlex
import sqlite3
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fabric.cli.entry import run
from fabric.ledger import upgrade


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    return (folder.parent / "docs/deployment.md").read_text()


@pytest.fixture(scope="module")
def commands(text: str) -> list[list[str]]:
    lines = [line for block in re.findall(r"(?s)```console\n(.*?)```", text) for line in block.splitlines()]
    assert all(line.startswith("$ ") for line in lines)
    return [shlex.split(line[2:], comments=True) for line in lines]


def test_links_lead_somewhere(text: str, folder: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert (folder.parent / "docs" / target).exists(), target


def test_compose_commands_name_services_profiles_and_files_that_exist(
    commands: list[list[str]], compose: Any, folder: Path
) -> None:
    profiles = {profile for service in compose.services.values() for profile in service.get("profiles", [])}
    composed = [words[2:] for words in commands if words[:2] == ["docker", "compose"]]
    assert len(composed) >= 10
    for words in composed:
        for option, value in pairwise(words):
            if option == "--profile":
                assert value in profiles
            if option == "--scale":
                assert value.partition("=")[0] in compose.services
            if option == "-f":
                assert (folder / value).exists()
            if option == "exec":
                name = words[words.index("exec") + (2 if "-T" in words else 1)]
                assert name in compose.services


def test_fabric_commands_exist(commands: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    called = [words[words.index("fabric") + 1 :] for words in commands if "fabric" in words and "pg_dump" not in words]
    assert ["submit", "hello", "--model", "assistant"] in called
    for words in called:
        known = [word for word in words if word not in ("hello", "assistant", "--model")]
        assert run([*known, "--help"]) == 0
    assert "--model" in capsys.readouterr().out


def test_overlays_and_profiles_of_the_text_exist(text: str, folder: Path, compose: Any) -> None:
    for overlay in re.findall(r"compose/kubernetes/overlays/(\w+)", text):
        assert (folder / "kubernetes/overlays" / overlay / "kustomization.yaml").exists()
    table = re.findall(r"(?m)^\| `(\w+)` \|", text)
    profiles = {profile for service in compose.services.values() for profile in service.get("profiles", [])}
    assert set(table) == profiles
    for name in re.findall(r"`([A-Z][A-Z_]+)[`=]", text):
        assert name in (folder / ".env.example").read_text(), name


def test_the_ledgers_copy_is_whole(commands: list[list[str]], tmp_path: Path) -> None:
    [code] = [words[-1] for words in commands if "sqlite3" in words[-1]]
    ledger = tmp_path / "ledger.sqlite3"
    upgrade(f"sqlite:///{ledger}")
    with sqlite3.connect(ledger) as held:
        held.execute("CREATE TABLE proof (word TEXT)")
        held.execute("INSERT INTO proof VALUES ('kept')")
        held.commit()
        subprocess.run([sys.executable, "-c", code.replace("/data", str(tmp_path))], check=True)
    with sqlite3.connect(tmp_path / "copy.sqlite3") as copy:
        assert copy.execute("SELECT word FROM proof").fetchall() == [("kept",)]
