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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_LEASH = str(Path(__file__).with_name("leash.py"))
#: Beyond the server's own time to stop: for the leash to see to the rest of its group.
_LEASH_S = 5.0

#: Usage statistics leave the machine otherwise.
_QUIET = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}


class VllmProcess:
    """Runs from its making on. Its output goes where the worker's goes."""

    def __init__(self, command: Callable[[int], list[str]], env: Mapping[str, str], stop_timeout_s: float) -> None:
        """``command`` is called with the port. ``env`` comes on top of this process' environment."""
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        #: Other users of this machine can reach the port, too.
        self.key = secrets.token_urlsafe(32)
        self.exited = asyncio.Event()
        self.status: int | None = None
        self._stop_timeout_s = stop_timeout_s
        environ = {name: value for name, value in os.environ.items() if not name.startswith("FABRIC_")}
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", _LEASH, str(stop_timeout_s), *located(command(port))],
            stdin=subprocess.PIPE,
            env={**environ, **_QUIET, **env, "VLLM_API_KEY": self.key},
            start_new_session=True,
        )
        loop = asyncio.get_running_loop()
        # A thread and not the loop's child watcher: that one needs the main thread's signals.
        threading.Thread(target=self._wait, args=(loop,), name=f"vllm-{self._process.pid}", daemon=True).start()

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
        try:
            loop.call_soon_threadsafe(self._has_exited, status)
        except RuntimeError:
            pass  # the loop is closed: nobody waits

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
