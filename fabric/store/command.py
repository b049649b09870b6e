"""A Redis command as a value: what to send, and how to read the answer.

The same command runs on a blocking or an asyncio connection, alone or in a pipeline.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Generic, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
_NEEDS = re.compile(r"^-- needs: (.+)$", re.MULTILINE)

Argument = bytes | str | int | float


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script with the parts that it needs in front, and its hash."""

    name: str
    source: str
    sha: str


@cache
def script(name: str) -> Script:
    source = with_parts(_text(f"{name}.lua"))
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


def with_parts(body: str) -> str:
    """What Redis gets: the body of a script behind its parts."""
    parts = "\n".join(_text(f"parts/{part}.lua") for part in parts_of(body))
    return f"{parts}\nlocal function run()\n{body}\nend\nlocal answer = run()\nwrite_gathered()\nreturn answer\n"


def parts_of(text: str) -> list[str]:
    """``core``, then what the line ``-- needs: …`` of a script or part names, each after what it needs itself.

    Only these: a call of the script defines all of them anew, at a tenth of a microsecond for each function.
    """
    parts = ["core"]
    if line := _NEEDS.search(text):
        for part in line[1].split(", "):
            found = [*parts_of(_text(f"parts/{part}.lua")), part]
            parts += [name for name in found if name not in parts]
    return parts


def _text(path: str) -> str:
    return (files("fabric.store") / "scripts" / path).read_text("utf-8")


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
