"""The one log of ``fabric up``: a line each, with time, process, level and message.

It goes to the terminal and to a file that is rotated. The terminal is written by a thread of its
own: one that nobody reads must not stop the fabric.
"""

from __future__ import annotations

import logging
import os
import queue
import re
import threading
from dataclasses import dataclass
from datetime import datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TextIO

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
#: The format of every process of the fabric; the supervisor takes it apart again.
FORMAT = "%(asctime)s.%(msecs)03d %(levelname)s %(message)s"
DATE_FORMAT = "%Y-%m-%d %H:%M:%S"

_FILE_BYTES = 10_000_000
_FILES_KEPT = 3
#: Lines that wait for a slow terminal; beyond it lines are only in the file.
_WAITING_LINES = 10_000
_COLOURS = {"DEBUG": "2", "WARNING": "33", "ERROR": "31", "CRITICAL": "31;1"}

_OWN = re.compile(r"(?:\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} )?(DEBUG|INFO|WARNING|ERROR|CRITICAL)[: ]+(.*)")
_VALKEY = re.compile(r"\d+:[A-Z] \d\d \w{3} \d{4} [\d:.]+ ([.\-*#]) (.*)")
_FATAL = re.compile(r"error: .*")


@dataclass(frozen=True, slots=True)
class Line:
    level: str
    message: str


def parse(text: str, previous: str = "INFO") -> Line:
    """A child's line. One without a level of its own goes on with the ``previous`` line's: a traceback does."""
    if own := _OWN.fullmatch(text):
        return Line(own[1], own[2])
    if valkey := _VALKEY.fullmatch(text):
        return Line("WARNING" if valkey[1] == "#" else "DEBUG", valkey[2])
    return Line("ERROR" if _FATAL.fullmatch(text) else previous, text)


class _File(RotatingFileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk: the terminal has the line, and a traceback for each would only hide it."""


class Journal:
    """``level`` is for the terminal; the file gets everything."""

    def __init__(self, file: Path, terminal: TextIO, *, level: str = "INFO") -> None:
        self._file = _File(file, maxBytes=_FILE_BYTES, backupCount=_FILES_KEPT, encoding="utf-8")
        self._terminal = terminal
        self._colour = terminal.isatty() and "NO_COLOR" not in os.environ
        self._shown = LEVELS.index(level)
        self._waiting: queue.Queue[str | None] = queue.Queue(_WAITING_LINES)
        self._writer = threading.Thread(target=self._write_terminal, name="terminal", daemon=True)
        self._writer.start()

    def write(self, name: str, level: str, message: str) -> None:
        now = datetime.now()
        text = f"{now:%Y-%m-%d %H:%M:%S}.{now.microsecond // 1000:03d} {name:<12} {level:<7} {message}"
        self._file.emit(logging.LogRecord("", logging.INFO, "", 0, text, None, None))
        if LEVELS.index(level) >= self._shown:
            try:
                self._waiting.put_nowait(self._coloured(text, level))
            except queue.Full:
                pass  # the file has it

    def close(self) -> None:
        """Waits a moment for the terminal."""
        try:
            self._waiting.put(None, timeout=1)
            self._writer.join(timeout=1)
        except queue.Full:
            pass
        self._file.close()

    def _coloured(self, text: str, level: str) -> str:
        code = _COLOURS.get(level)
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour and code else text

    def _write_terminal(self) -> None:
        while (text := self._waiting.get()) is not None:
            try:
                self._terminal.write(text + "\n")
                self._terminal.flush()
            except (OSError, ValueError):
                return  # the terminal is gone; the file goes on
