"""A Redis command as a value: what to send, and how to read the answer.

The same command runs on a blocking or an asyncio connection, alone or in a pipeline.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Generic, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Argument = bytes | str | int | float


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script with the shared prelude in front, and its hash."""

    name: str
    source: str
    sha: str


@cache
def script(name: str) -> Script:
    folder = files("fabric.store") / "scripts"
    prelude = (folder / "_prelude.lua").read_text("utf-8")
    body = (folder / f"{name}.lua").read_text("utf-8")
    source = f"{prelude}local function run()\n{body}\nend\nlocal answer = run()\nwrite_gathered()\nreturn answer\n"
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


@dataclass(frozen=True, slots=True)
class Command(Generic[T_co]):
    """``args`` as for ``execute_command``; ``script`` is set for ``EVALSHA`` commands."""

    args: tuple[Argument, ...]
    parse: Callable[[Any], T_co]
    script: Script | None = None


def call(name: str, arguments: Sequence[Argument], parse: Callable[[Any], T]) -> Command[T]:
    """Runs ``scripts/<name>.lua``. The scripts build key names themselves: no key is passed."""
    lua = script(name)
    return Command(("EVALSHA", lua.sha, 0, *arguments), parse, lua)
