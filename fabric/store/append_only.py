"""The embedded Valkey's append-only file after a full disk or a loss of power: what is wrong with it, and mending it.

Valkey undoes a write that the full disk cut short by cutting the file back to its last whole command. But a file that
a rewrite has begun (any since the server's start) isn't open for appending: the next write lands where the short one
had ended, and what lies between is a hole, which reads as zeros. Valkey goes on well, and refuses the file at its next
start: ``Bad file format``. A hole between two whole commands holds nothing, so taking it out loses nothing. Seen with
Valkey 9.1.2, by the flags of its open file in ``/proc/PID/fdinfo``.

A machine that loses its power may leave zeros at the end of a file: what was on its way to the disk is gone, and the
zeros are in the way of the rest.
"""

from __future__ import annotations

import mmap
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fabric.contracts.errors import ConfigError

_FOLDER = "appendonlydir"
_NEW = ".mended"
#: Longest line of a command: ``*`` or ``$`` and a number; or a ``#`` annotation, of at most 1 KiB in Valkey.
_LINE = 1100
_COPY = 1 << 20
_CUT, _WRONG = 0, -1
#: How a command begins, or an annotation.
_HEAD = re.compile(rb"\*[1-9][0-9]*\r\n\$[0-9]+\r\n|#TS:[0-9]+\r\n")


@dataclass(frozen=True, slots=True)
class Condition:
    """Of one file, in bytes. ``holes``: (first, behind the last) of each run of zeros between two whole commands.
    ``end``: behind the last command that can be read. What follows there is half a command, as a killed server leaves
    it and Valkey cuts off by itself; the same with ``zeros`` up to the end of the file, which Valkey refuses; or
    something ``bad``, which is no command."""

    size: int
    end: int
    holes: tuple[tuple[int, int], ...] = ()
    zeros: bool = False
    bad: bool = False

    @property
    def mendable(self) -> bool:
        return not self.bad and bool(self.holes or self.zeros)


def files(folder: Path) -> list[Path]:
    """Those parts of the append-only file that hold commands, oldest first. ``folder``: the server's ``--dir``."""
    return [path for path, kind in _parts(folder) if kind == "i" and path.exists()]


def sizes(folder: Path) -> tuple[int, int]:
    """Bytes of its base, and of the files with commands since then."""
    parts = [(kind, path.stat().st_size) for path, kind in _parts(folder) if kind in ("b", "i")]
    return sum(size for kind, size in parts if kind == "b"), sum(size for kind, size in parts if kind == "i")


def mend(folder: Path) -> list[str]:
    """Before the server starts: takes out holes and cuts off zeros at the end. What was done, a sentence each, with
    what is lost by it. Files that are otherwise damaged are left as they are: Valkey refuses them, and ``condition``
    tells more.

    Raises:
        ConfigError: there is no room for a file without its holes.
    """
    done: list[str] = []
    for path in files(folder):
        if not _suspicious(path):
            continue
        found = condition(path)
        if not found.mendable:
            continue
        try:
            _write_without(path, found)
        except OSError as error:
            path.with_name(path.name + _NEW).unlink(missing_ok=True)
            raise ConfigError(
                f"{path} has a hole since its disk was full, and there is no room to write it anew ({error.strerror}): "
                f"make {found.size / 2**20:.0f} MiB free on that disk."
            ) from None
        done += _said(path, found)
    return done


def condition(path: Path) -> Condition:
    """Reads the whole file: some seconds for a hundred megabytes of small commands."""
    with _bytes(path) as data:
        size, at = len(data), 0
        holes: list[tuple[int, int]] = []
        while at < size:
            behind = _behind_command(data, at, size)
            if behind <= 0:
                behind_zeros = _behind_zeros(data, at)
                if behind_zeros in (at, size):
                    break
                holes.append((at, behind_zeros))
                behind = behind_zeros
            at = behind
        if at == size:
            return Condition(size, size, tuple(holes))
        last = _behind_the_last(data, at)
        cut = last == at or _behind_command(data, at, last) == _CUT
        return Condition(size, at, tuple(holes), zeros=cut and last < size, bad=not cut)


def _parts(folder: Path) -> Iterator[tuple[Path, str]]:
    """``b``: the base that a rewrite made; ``i``: commands since then; ``h``: what is about to be deleted."""
    manifest = folder / _FOLDER / "appendonly.aof.manifest"
    for line in manifest.read_text().splitlines() if manifest.exists() else ():
        words = line.split()  # file NAME seq N type i [more]
        values = dict(zip(words[::2], words[1::2], strict=False))
        yield manifest.parent / values["file"], values["type"]


@contextmanager
def _bytes(path: Path) -> Iterator[mmap.mmap | bytes]:
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            yield b""
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data


def _suspicious(path: Path) -> bool:
    """A quick look, at the speed of a search for three bytes, that misses nothing which ``mend`` mends. A healthy file
    may look so, too, where a value happens to hold these bytes."""
    with _bytes(path) as data:
        if not data:
            return False
        if data[0] == 0 or data[-1] == 0:
            return True
        at = data.find(b"\r\n\0")
        while at >= 0:
            behind_zeros = _behind_zeros(data, at + 2)
            if len(data) - behind_zeros < _LINE or _HEAD.match(data, behind_zeros):
                return True
            at = data.find(b"\r\n\0", behind_zeros)
        return False


def _behind_command(data: mmap.mmap | bytes, at: int, end: int) -> int:
    """Where the next one begins; ``_CUT`` when ``end`` comes first, ``_WRONG`` when this is none."""
    kind = data[at : at + 1]
    if kind not in (b"*", b"#"):
        return _WRONG
    line = data.find(b"\r\n", at, min(end, at + _LINE))
    if line < 0:
        return _CUT if end - at < _LINE else _WRONG
    if kind == b"#":
        return line + 2
    count = data[at + 1 : line]
    if not count.isdigit():
        return _WRONG
    at = line + 2
    for _ in range(int(count)):
        if at >= end:
            return _CUT
        line = data.find(b"\r\n", at, min(end, at + _LINE))
        if line < 0 and end - at < _LINE and data[at : at + 1] == b"$":
            return _CUT
        length = data[at + 1 : line]
        if line < 0 or data[at : at + 1] != b"$" or not length.isdigit():
            return _WRONG
        at = line + 2 + int(length) + 2
        if at > end:
            return _CUT
        if data[at - 2 : at] != b"\r\n":
            return _WRONG
    return at


def _behind_zeros(data: mmap.mmap | bytes, at: int) -> int:
    size = len(data)
    while at < size:
        part = data[at : at + _COPY]
        left = len(part.lstrip(b"\0"))
        at += len(part) - left
        if left:
            break
    return at


def _behind_the_last(data: mmap.mmap | bytes, least: int) -> int:
    """Behind the last byte that isn't zero, but no less than ``least``."""
    at = len(data)
    while at > least:
        part = data[max(least, at - _COPY) : at]
        left = len(part.rstrip(b"\0"))
        at -= len(part) - left
        if left:
            break
    return at


def _write_without(path: Path, found: Condition) -> None:
    """Replaced in one step: whoever dies meanwhile leaves the file as it was."""
    new = path.with_name(path.name + _NEW)
    behind = [0, *(last for _, last in found.holes)]
    ends = [*(first for first, _ in found.holes), found.end if found.zeros else found.size]
    with path.open("rb") as old, new.open("wb") as copy:
        for first, last in zip(behind, ends, strict=True):
            old.seek(first)
            left = last - first
            while left:
                part = old.read(min(left, _COPY))
                left -= len(part)
                copy.write(part)
        copy.flush()
        os.fsync(copy.fileno())
    shutil.copymode(path, new)
    new.replace(path)


def _said(path: Path, found: Condition) -> Iterator[str]:
    for first, last in found.holes:
        yield (
            f"{path.name} had a hole of {last - first} bytes at {first}, since its disk was full while it was written: "
            "it is taken out; nothing is lost by that"
        )
    if found.zeros:
        yield (
            f"{path.name} ended in zeros, as a loss of power leaves it: cut off at {found.end} of {found.size} bytes; "
            "what was written in the last moments before is lost"
        )
