"""One ``vllm serve``: a child on a leash, whose end can be awaited."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from workers.engines.last_words import reason

_LEASH = str(Path(__file__).with_name("leash.py"))
#: Beyond the server's own time to stop: for the leash to see to the rest of its group.
_LEASH_S = 5.0

#: Lines of its output that are remembered until it is up: a traceback of several processes fits.
_REMEMBERED = 400
_LONGEST_LINE = 8_192
#: How long its last lines are waited for once it has ended: something that left its group may hold the pipe open.
_LAST_LINES_S = 1.0
_STDERR = 2

#: Usage statistics leave the machine otherwise.
_QUIET = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}


class VllmProcess:
    """Runs from its making on. Its output goes where the worker's errors go."""

    def __init__(self, command: Callable[[int], list[str]], env: Mapping[str, str], stop_timeout_s: float) -> None:
        """``command`` is called with the port. ``env`` comes on top of this process' environment."""
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        #: Other users of this machine can reach the port, too.
        self.key = secrets.token_urlsafe(32)
        self.exited = asyncio.Event()
        self.status: int | None = None
        self._stop_timeout_s = stop_timeout_s
        self._said: deque[str] | None = deque(maxlen=_REMEMBERED)
        environ = {name: value for name, value in os.environ.items() if not name.startswith("FABRIC_")}
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", _LEASH, str(stop_timeout_s), *located(command(port))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**environ, **_QUIET, **env, "VLLM_API_KEY": self.key},
            start_new_session=True,
        )
        loop = asyncio.get_running_loop()
        self._passing = threading.Thread(target=self._pass_on, name=f"vllm-{self._process.pid}-output", daemon=True)
        self._passing.start()
        # A thread and not the loop's child watcher: that one needs the main thread's signals.
        threading.Thread(target=self._wait, args=(loop,), name=f"vllm-{self._process.pid}", daemon=True).start()

    @property
    def reason(self) -> str | None:
        """Why it ended before it was up, by its own last words; ``None`` where they don't say."""
        return reason(tuple(self._said or ()))

    def is_up(self) -> None:
        """From now on its output is passed on and not remembered: it may be about requests."""
        self._said = None

    async def stop(self) -> None:
        """Returns when nothing of it is left."""
        self._let_go()
        try:
            async with asyncio.timeout(self._stop_timeout_s + _LEASH_S):
                await self.exited.wait()
        except TimeoutError:
            self._process.kill()
            await self.exited.wait()

    def _let_go(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        status = self._process.wait()
        self._passing.join(_LAST_LINES_S)
        try:
            loop.call_soon_threadsafe(self._has_exited, status)
        except RuntimeError:
            pass  # the loop is closed: nobody waits

    def _pass_on(self) -> None:
        """Until the leash and all of the server have closed their end of the pipe."""
        assert self._process.stdout
        with self._process.stdout as output, open(_STDERR, "wb", buffering=0, closefd=False) as errors:
            for line in iter(partial(output.readline, _LONGEST_LINE), b""):
                if (said := self._said) is not None:
                    said.append(line.decode("utf-8", "replace").rstrip())
                with suppress(OSError):
                    errors.write(line)

    def _has_exited(self, status: int) -> None:
        self.status = status
        self.exited.set()


def located(command: Sequence[str], environment: Path = Path(sys.executable).parent) -> list[str]:
    """The command as it is run: a bare name is looked for in the worker's own environment, which need not be on
    the PATH, then on the PATH."""
    program, *arguments = command
    return [shutil.which(program, path=environment) or program, *arguments]


def _free_port() -> int:
    """Free now: vLLM can't choose one itself. Should it be taken first, vLLM ends and is started again."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
