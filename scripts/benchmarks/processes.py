"""Processes that a benchmark starts: Python modules of this checkout, stopped by their process id."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import psutil

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
_LOOK_S = 0.02
_STOP_S = 60.0


class Void(Exception):
    """The run measured nothing that counts: a part didn't start, or an answer was wrong."""


def environ(**variables: str) -> dict[str, str]:
    """The environment without the caller's own settings of a fabric, and with this checkout first on the path."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FABRIC_")}
    path = os.pathsep.join((str(ROOT), str(ROOT / "scripts")))
    return {**kept, "PYTHONPATH": path, "NO_COLOR": "1", **variables}


@contextmanager
def module(name: str, *arguments: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """``python -m name arguments``, as ``program`` runs it."""
    with program([sys.executable, "-m", name, *arguments], **options) as process:
        yield process


@contextmanager
def program(
    command: list[str], *, log: Path | None = None, variables: dict[str, str] | None = None, **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ended in order when the context is left.

    ``log`` takes what it says; ``variables`` are added to its environment; ``options`` are those of ``Popen``.
    """
    with log.open("ab") if log else nullcontext(subprocess.DEVNULL) as sink:
        given = {"env": environ(**(variables or {})), "stdout": sink, "stderr": sink, **options}
        process = subprocess.Popen(command, start_new_session=True, **given)
        try:
            yield process
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Asks, waits, then insists: the process and what it started."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def until(what: Callable[[], T], *, within_s: float, missing: str) -> T:
    """Looks again and again until ``what`` answers something; for things that have no event.

    Raises:
        Void: not ``within_s`` seconds.
    """
    limit = time.monotonic() + within_s
    while not (answer := what()):
        if time.monotonic() > limit:
            raise Void(f"{missing} within {within_s:g} s")
        time.sleep(_LOOK_S)
    return answer


def cpu_s(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def rss_bytes(pid: int) -> int:
    return int(psutil.Process(pid).memory_info().rss)
