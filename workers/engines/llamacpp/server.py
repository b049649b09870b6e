"""Keeps llama.cpp's server process running: started again when it dies, later and later, until it is closed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from typing import Any

from fabric.contracts.errors import ConfigError, EngineAway, EngineUnavailable, FabricError, ModelFileError
from workers.engines.llamacpp.http import OnBody, Response, request

log = logging.getLogger(__name__)

_CHILD = str(Path(__file__).with_name("child.py"))
#: Waits before starting again, in seconds. A process that ran for ``_STABLE_S`` starts afresh.
_FIRST_WAIT_S, _LONGEST_WAIT_S, _STABLE_S = 0.2, 30.0, 60.0
#: How long requests wait for a server that is being started again, before they go elsewhere.
_PATIENCE_S = 120.0
#: From the end of its stdin to SIGKILL.
_GRACE_S = 5.0
#: How long its last words are waited for when it is gone.
_LAST_WORDS_S = 2.0
#: What is kept of what the process says while it loads.
_SAID_LIMIT = 64 * 1024

#: How long idle threads of llama.cpp look for work before they sleep, in rounds. Its own default burns
#: a core meanwhile: where anything else needs that core, such as the worker, every step of every token
#: waits for a thread that isn't running. Measured on 2 busy cores: 10 times slower, at times 100 times.
#: On an idle machine there is no difference.
_ENVIRONMENT = {"GOMP_SPINCOUNT": "200"}

_ERROR_LINE = re.compile(r"^[\d.]+ E (?:\w+ +)?(.+)$", re.MULTILINE)
#: What llama.cpp puts before the point of a message.
_PREAMBLE = re.compile(r"^(?:[\w ]+: )?(?:error loading model: )?(?:error loading model \w+: )?")


class Server:
    """One llama.cpp process. ``params`` are those of ``child.py``."""

    def __init__(self, name: str, params: dict[str, Any], start_timeout_s: float) -> None:
        self._name = name
        self._params = params
        self._start_timeout_s = start_timeout_s
        self._process: Process | None = None
        self._socket = ""
        self._up = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None

    @property
    def up(self) -> bool:
        return self._up.is_set()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._up.is_set() else None

    async def start(self) -> None:
        """Returns when requests can come.

        Raises:
            ModelFileError: llama.cpp refuses the file.
            ConfigError: it can't run the model in this way.
            EngineUnavailable: it was killed, perhaps for want of memory.
        """
        process = await self._launch()
        self._watcher = asyncio.create_task(self._watch(process), name=f"llama.cpp of {self._name}")

    async def close(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
        if self._process is not None:
            await _stop(self._process)
            self._gone()

    async def request(self, target: str, content: bytes | None = None, on_body: OnBody | None = None) -> Response:
        """See ``http.request``.

        Raises:
            EngineUnavailable: the process died, or (``EngineAway``) isn't there for so long that it isn't waited for.
        """
        while True:
            if not self._up.is_set():
                await self._wait()
            socket = self._socket
            try:
                return await request(socket, target, content, on_body)
            except (ConnectionRefusedError, FileNotFoundError):
                # Died a moment ago, and nothing was sent: as if it had been known.
                if self._socket == socket:
                    self._up.clear()
            except OSError:
                raise EngineUnavailable(
                    f"The llama.cpp server of deployment {self._name!r} died; it is started again."
                ) from None

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await self._up.wait()
        except TimeoutError:
            raise EngineAway(f"The llama.cpp server of deployment {self._name!r} doesn't come up.") from None

    async def _watch(self, process: Process) -> None:
        failures = 0
        while True:
            started = time.monotonic()
            status = await process.wait()
            self._gone()
            failures = 1 if time.monotonic() - started >= _STABLE_S else failures + 1
            log.error("deployment %s: the llama.cpp server %s; it is started again", self._name, _ending(status))
            while True:
                await asyncio.sleep(min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** min(failures - 1, 16)))
                try:
                    process = await self._launch()
                    break
                except FabricError as error:
                    failures += 1
                    log.error("deployment %s: %s", self._name, error.message)

    def _gone(self) -> None:
        self._up.clear()
        self._process = None
        shutil.rmtree(Path(self._socket).parent, ignore_errors=True)

    async def _launch(self) -> Process:
        # Private to this user: whoever can connect can ask. Short: the paths of sockets have a limit.
        folder = tempfile.mkdtemp(prefix="fabric-")
        socket = f"{folder}/llama.sock"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", _CHILD, str(os.getpid())),
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            env=_ENVIRONMENT | os.environ,
            # Ctrl-C on the terminal is for the worker, which has jobs to finish first.
            start_new_session=True,
        )
        try:
            await self._load(process, json.dumps({"socket": socket, "params": self._params}).encode() + b"\n")
        except BaseException:
            await _stop(process, grace_s=0)
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._process, self._socket = process, socket
        self._up.set()
        return process

    async def _load(self, process: Process, settings: bytes) -> None:
        assert process.stdin and process.stdout and process.stderr
        said = bytearray()
        listening = asyncio.create_task(_listen(process.stderr, said))
        try:
            async with asyncio.timeout(self._start_timeout_s):
                with contextlib.suppress(ConnectionError):  # it is gone already; its status says more
                    process.stdin.write(settings)
                    await process.stdin.drain()
                ready = await process.stdout.readline()
                if not ready:
                    status = await process.wait()
                    await asyncio.wait({listening}, timeout=_LAST_WORDS_S)
                    raise self._refusal(status, said.decode(errors="replace"))
        except TimeoutError:
            raise ConfigError(
                f"Deployment {self._name!r}: {self._path} took longer than {self._start_timeout_s:g} s to load; "
                "raise `options.start_timeout_s` or use a smaller model."
            ) from None
        finally:
            listening.cancel()
        if b"failed to mlock" in said:
            raise ConfigError(
                f"Deployment {self._name!r}: the weights can't be locked in memory; allow it (ulimit -l) "
                "or leave out `options.mlock`."
            )

    @property
    def _path(self) -> str:
        return str(self._params["model.path"])

    def _refusal(self, status: int, said: str) -> FabricError:
        found = _ERROR_LINE.search(said)
        reason = _PREAMBLE.sub("", found[1]).strip(" .") if found else _ending(status)
        if status == -signal.SIGKILL:
            return EngineUnavailable(
                f"Deployment {self._name!r}: llama.cpp was killed while it loaded {self._path}, perhaps for want of "
                "memory; fewer `slots` or a smaller `context_window` need less."
            )
        if "chat template" in said:
            return ConfigError(
                f"Deployment {self._name!r}: llama.cpp can't read the chat template of {self._path}: {reason}."
            )
        if "failed to create" in said:  # the model was loaded, its context wasn't
            return ConfigError(f"Deployment {self._name!r}: llama.cpp can't run {self._path} in this way: {reason}.")
        return ModelFileError(f"Deployment {self._name!r}: llama.cpp refuses {self._path}: {reason}.")


async def _listen(stream: asyncio.StreamReader, said: bytearray) -> None:
    while data := await stream.read(8_192):
        said += data
        del said[:-_SAID_LIMIT]


async def _stop(process: Process, grace_s: float = _GRACE_S) -> None:
    """Ends with its stdin; else it is killed."""
    assert process.stdin
    process.stdin.close()
    try:
        async with asyncio.timeout(grace_s):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _ending(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"
