"""One program that is kept running: started again when it dies, later and later, until it is stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fabric.cli.journal import Journal, parse
from fabric.contracts.errors import ConfigError

#: What ``sysexits.h`` calls a configuration error: starting again won't help.
EX_CONFIG = 78
_TETHER = str(Path(__file__).with_name("tether.py"))
_LINE_LIMIT = 8_192
#: How long output is waited for after a process ended: one that left its group may hold the pipe open.
_LAST_WORDS_S = 0.5


@dataclass(frozen=True, slots=True)
class Program:
    """``grace_s``: from SIGTERM to SIGKILL. ``fds`` stay open in the program under their numbers. ``withheld``:
    environment variables that it isn't given; ``given``: those that it gets beyond the others, with their values.
    ``prepare`` is called on a thread before each start, and answers with what there is to say of it; it may raise
    ``ConfigError``."""

    name: str
    command: tuple[str, ...]
    grace_s: float = 10.0
    fds: tuple[int, ...] = ()
    withheld: frozenset[str] = frozenset()
    given: Mapping[str, str] = field(default_factory=dict, repr=False)
    prepare: Callable[[], Sequence[str]] | None = None

    def environ(self, everybodys: Mapping[str, str]) -> dict[str, str]:
        """What it gets of what all get."""
        return {name: value for name, value in everybodys.items() if name not in self.withheld} | dict(self.given)


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before starting again. A program that ran for ``stable_s`` starts afresh."""

    first_s: float = 0.2
    limit_s: float = 10.0
    stable_s: float = 60.0
    #: Configuration errors in a row that a program may have that was stable before.
    config_errors: int = 5

    def delay(self, failures: int) -> float:
        return float(min(self.limit_s, self.first_s * 2 ** min(failures - 1, 32)))


BACKOFF = Backoff()


class Child:
    """``changed`` is called when the process behind the program is another one, or none."""

    def __init__(
        self,
        program: Program,
        journal: Journal,
        environ: Mapping[str, str],
        *,
        backoff: Backoff = BACKOFF,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.program = program
        self.pid: int | None = None
        self.restarts = 0
        self.failures = 0  #: deaths in a row
        self._journal = journal
        self._environ = environ
        self._backoff = backoff
        self._changed = changed
        self._stopping = asyncio.Event()
        self._ended = asyncio.Event()
        self._last_lines: deque[str] = deque(maxlen=50)

    async def keep_running(self) -> None:
        """Returns after ``stop``.

        Raises:
            ConfigError: the program says that its configuration can't work, or it can't be prepared.
        """
        stable_before = False
        config_errors = 0
        try:
            while not self._stopping.is_set():
                started = time.monotonic()
                try:
                    status = await self.run_once()
                except ConfigError as error:
                    if not stable_before:
                        raise
                    self._say("ERROR", error.message)
                    status = os.EX_CANTCREAT  # a full disk may get room
                if self._stopping.is_set():
                    return
                if time.monotonic() - started >= self._backoff.stable_s:
                    stable_before, self.failures, config_errors = True, 0, 0
                self.failures += 1
                if status == EX_CONFIG:
                    config_errors += 1
                    if not stable_before or config_errors > self._backoff.config_errors:
                        raise ConfigError(f"{self.program.name} can't run as configured. {self.last_words()}".rstrip())
                delay = self._backoff.delay(self.failures)
                self._say("WARNING", f"{_ending(status)}; starts again in {delay:g} s")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), delay)
                    return
                self.restarts += 1
        finally:
            self._ended.set()

    async def run_once(self) -> int:
        """Answers the exit status, negative for a signal."""
        self._last_lines.clear()
        if self.program.prepare:
            for said in await asyncio.to_thread(self.program.prepare):
                self._say("WARNING", said)
        read_end, write_end = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", _TETHER, str(os.getpid()), *self.program.command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=write_end,
                stderr=write_end,
                env=self.program.environ(self._environ),
                pass_fds=self.program.fds,
                # Ctrl-C on the terminal is for the supervisor alone; it stops the rest in order.
                start_new_session=True,
            )
        finally:
            os.close(write_end)
        self.pid = process.pid
        reading = asyncio.create_task(self._read(read_end))
        self._changed()
        if self._stopping.is_set():
            self._terminate()
        try:
            status = await process.wait()
            self._signal_group(signal.SIGKILL)  # what the process left behind
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(reading, _LAST_WORDS_S)
        finally:
            reading.cancel()
            self._signal_group(signal.SIGKILL)  # the process itself, if we are cancelled
            self.pid = None
            self._changed()
        return status

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL to those that take longer than their grace."""
        self._stopping.set()
        self._terminate()
        try:
            await asyncio.wait_for(self._ended.wait(), self.program.grace_s)
        except TimeoutError:
            self._say("WARNING", f"didn't stop within {self.program.grace_s:g} s and is killed")
            self.kill()
            await self._ended.wait()

    def kill(self) -> None:
        self._stopping.set()
        self._signal_group(signal.SIGKILL)

    def last_words(self) -> str:
        """The error that the program ended with, else the last line that it wrote."""
        lines = list(self._last_lines)
        at = max((n for n, line in enumerate(lines) if line.startswith("error: ")), default=len(lines) - 1)
        return "\n".join(lines[max(at, 0) :]).removeprefix("error: ")

    def _terminate(self) -> None:
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def _signal_group(self, number: signal.Signals) -> None:
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    async def _read(self, descriptor: int) -> None:
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", 0)
        )
        level, rest = "INFO", b""
        try:
            while data := await reader.read(65_536):
                *lines, rest = (rest + data).split(b"\n")
                if len(rest) > _LINE_LIMIT:
                    lines, rest = [*lines, rest], b""
                for line in lines:
                    level = self._hear(line, level)
            if rest:
                self._hear(rest, level)
        finally:
            transport.close()

    def _hear(self, data: bytes, level: str) -> str:
        text = data[:_LINE_LIMIT].decode("utf-8", "replace").rstrip()
        if not text:
            return level
        self._last_lines.append(text)
        line = parse(text, level)
        self._say(line.level, line.message)
        return line.level

    def _say(self, level: str, message: str) -> None:
        self._journal.write(self.program.name, level, message)


def _ending(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
