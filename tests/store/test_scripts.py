"""Each Lua script gets the parts that it uses, and no others: it defines them anew at each call."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import TYPE_CHECKING

import pytest

from fabric.store.command import parts_of, script, with_parts

if TYPE_CHECKING:
    from fabric.store import Store

SCRIPTS = files("fabric.store") / "scripts"
NAMES = sorted(entry.name.removesuffix(".lua") for entry in SCRIPTS.iterdir() if entry.name.endswith(".lua"))
PARTS = sorted(entry.name.removesuffix(".lua") for entry in (SCRIPTS / "parts").iterdir())
_DEFINED = re.compile(r"^local function (\w+)|^local ([\w, ]+?)(?: =| --|$)", re.MULTILINE)
_LOCAL = re.compile(r"local (?:function )?([\w, ]+)|for ([\w, ]+?) (?:in|=)")
_NAME = re.compile(r"(?<![\w.:])[A-Za-z_]\w*")


def code(text: str) -> str:
    return re.sub(r"'[^'\n]*'", "", re.sub(r"--[^\n]*", "", text))


def text_of(name: str) -> str:
    return (SCRIPTS / f"{name}.lua").read_text("utf-8")


def listed(found: re.Match[str]) -> set[str]:
    return {name.strip() for group in found.groups() if group for name in group.split(",")}


def defined() -> dict[str, str]:
    """Name -> the part that defines it for others."""
    return {
        name: part
        for part in PARTS
        for found in _DEFINED.finditer(code(text_of(f"parts/{part}")))
        for name in listed(found)
    }


@pytest.mark.parametrize("name", [*NAMES, *(f"parts/{part}" for part in PARTS)])
def test_it_needs_what_it_uses(name: str) -> None:
    text = code(text_of(name))
    own = {local for found in _LOCAL.finditer(text) for local in listed(found)}
    used = {part for local, part in defined().items() if local in set(_NAME.findall(text)) - own}
    line = re.search(r"^-- needs: (.+)$", text_of(name), re.MULTILINE)
    named = set(line[1].split(", ")) if line else set()
    assert named == used - {"core", name.removeprefix("parts/")}


def test_no_two_parts_define_the_same() -> None:
    names = [
        name for part in PARTS for found in _DEFINED.finditer(code(text_of(f"parts/{part}"))) for name in listed(found)
    ]
    assert len(names) == len(set(names))


def test_a_part_comes_once_and_after_what_it_needs() -> None:
    assert parts_of("-- needs: outrun, ending\n") == [
        *("core", "budgets", "events", "backlog", "spending", "jobs", "experience", "limits", "ending", "outrun")
    ]


@pytest.mark.parametrize("name", NAMES)
def test_redis_reads_it(store: Store, name: str) -> None:
    assert store.redis.script_load(script(name).source) == script(name).sha


def test_what_is_gathered_is_written_when_the_script_ends(store: Store) -> None:
    body = "gather('SADD', P .. 'a', '1')\ngather('SADD', P .. 'a', '2')\nreturn redis.call('SCARD', P .. 'a')"
    assert store.redis.eval(with_parts(body), 0) == 1
    assert store.redis.scard("fabric:a") == 2
