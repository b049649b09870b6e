"""``fabric up`` without its command line: every process of the fabric on one machine.

Started in the order in which they need each other, stopped the other way round: the API first, so
that nothing new comes in, then the workers while the rest still serves them, the store last.
"""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import sys
from collections.abc import Awaitable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import fabric
from fabric.cli import data_dir, embedded, listen
from fabric.cli.child import BACKOFF, Backoff, Program
from fabric.cli.hole_watch import keep_whole
from fabric.cli.journal import Journal
from fabric.cli.supervisor import Supervisor
from fabric.contracts.catalog import TIERS, Deployment
from fabric.contracts.errors import ConfigError
from fabric.contracts.signed import Signer
from fabric.contracts.zones import WorkerKeys
from fabric.settings import Settings
from fabric.settings.secret import secrets_of
from fabric.store import append_only
from fabric.store.embedded import server_command

#: How the processes are called: this very code, whatever lies in the working directory.
_FABRIC = (sys.executable, "-P", "-m", "fabric.cli")
#: Those that hash keys, and seal: the others need no secret.
_WITH_SECRET = ("api", "recorder")
_FABRICS_OWN = "FABRIC_SECRET"
_ZONE_KEYS = "FABRIC_ZONE_KEYS"
#: Deaths in a row at the start after which the embedded store counts as broken.
_STORE_TRIES = 3
_LOOK_S = 0.1


class FabricUp:
    """One run. ``environ`` is what the processes get, each without the secrets that are others'; it must lead them to
    the same settings."""

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        environ: Mapping[str, str],
        *,
        command: tuple[str, ...] = _FABRIC,
        backoff: Backoff = BACKOFF,
    ) -> None:
        self._settings = settings
        self._command = command
        self._journal = journal
        self._listener = listen.bind(settings.host, settings.port)
        self._tls = settings.tls_cert is not None
        self._url = listen.url(self._listener, tls=self._tls)
        self._supervisor = Supervisor(journal, _child_environ(environ), backoff=backoff, changed=self._write_run)
        self._started = datetime.now(UTC).isoformat(timespec="seconds")
        self._interrupts = 0
        self._stop = asyncio.Event()
        self._keeping_whole: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Until SIGINT, SIGTERM or SIGHUP; a second one doesn't wait for what is running.

        Raises:
            ConfigError: a process can't run as configured. Everything else has been stopped.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._interrupt)
        try:
            await self._unless_stopped(self._bring_up())
            if not self._stop.is_set():
                self._say(f"ready on {self._url} (log: {self._settings.data_dir / 'fabric.log'}; Ctrl-C stops)")
                await self._unless_stopped(self._supervisor.failed())
        finally:
            await self._drain()
            data_dir.remove_run(self._settings.data_dir)

    async def _bring_up(self) -> None:
        self._settings.files_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._settings.socket:
            await self._start_store(self._settings.socket)
        await self._supervisor.run(self._program("migrate"))
        for program in (self._scheduler(), self._program("recorder"), *self._workers(), self._api()):
            self._supervisor.start(program)
        await _ready(self._listener.getsockname(), tls=self._tls)

    async def _start_store(self, path: Path) -> None:
        await embedded.clear(path, self._settings.data_dir)
        folder = self._settings.data_dir / "valkey"
        folder.mkdir(mode=0o700, exist_ok=True)
        # Valkey writes its data at every change; what it does on SIGTERM takes milliseconds.
        child = self._supervisor.start(
            Program(
                "valkey",
                tuple(server_command(path, folder)),
                grace_s=30,
                withheld=self._withheld("valkey"),
                prepare=lambda: append_only.mend(folder),
            )
        )
        answering = asyncio.create_task(embedded.ready(path))
        try:
            while not answering.done():
                if child.failures >= _STORE_TRIES:
                    hint = "`fabric doctor` looks at what it has on disk."
                    raise ConfigError(f"The embedded Valkey doesn't start. {child.last_words()}\n{hint}")
                await asyncio.wait([answering], timeout=_LOOK_S)
        finally:
            answering.cancel()
        say = partial(self._journal.write, "valkey")
        self._keeping_whole = asyncio.create_task(keep_whole(path, folder, say))

    def _workers(self) -> list[Program]:
        catalog = self._settings.catalog
        return [
            self._program("worker", tier, name=f"worker-{tier}", given=self._zone_keys(places))
            for tier in TIERS
            if (places := catalog.of_tier(tier))
        ]

    def _scheduler(self) -> Program:
        return self._program("scheduler", given={_ZONE_KEYS: Signer.of(secrets_of(self._settings)).dump()})

    def _api(self) -> Program:
        # The supervisor keeps the socket open: while the API restarts, callers wait instead of being refused.
        descriptor = self._listener.fileno()
        return self._program("api", "--fd", str(descriptor), fds=(descriptor,))

    def _program(
        self, *arguments: str, name: str = "", fds: tuple[int, ...] = (), given: Mapping[str, str] | None = None
    ) -> Program:
        # A little more than the process gives itself, so that it can say what it left behind.
        grace_s, withheld = self._settings.drain_s + 5, self._withheld(*arguments)
        return Program(name or arguments[0], (*self._command, *arguments), grace_s, fds, withheld, given or {})

    def _zone_keys(self, places: Iterable[Deployment]) -> dict[str, str]:
        return {_ZONE_KEYS: WorkerKeys.of(secrets_of(self._settings), {place.zone for place in places}).dump()}

    def _withheld(self, program: str, tier: str = "", *_: str) -> frozenset[str]:
        """Secrets of the environment that aren't this program's: the fabric's own, keys of other tiers' places, what
        webhooks are signed with."""
        places = [place for model in self._settings.catalog.models for place in model.deployments]
        keys = {(place.tier, place.api_key_env) for place in places if place.api_key_env}
        hooks = {hook.secret_env for hook in self._settings.webhooks}
        own = {key for of, key in keys if program == "worker" and of == tier}
        own |= hooks if program == "recorder" else set()
        own |= {_FABRICS_OWN} if program in _WITH_SECRET else set()
        return frozenset({_FABRICS_OWN, _ZONE_KEYS, *hooks, *(key for _, key in keys)} - own)

    async def _unless_stopped(self, work: Awaitable[Any]) -> None:
        """Waits for ``work``, or for the end of the run. Raises what ``work`` or a failed program raises."""
        tasks = [asyncio.ensure_future(w) for w in (work, self._stop.wait(), self._supervisor.failed())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _drain(self) -> None:
        self._listener.close()
        workers = [name for name in self._supervisor.children if name.startswith("worker-")]
        for names in (["api"], workers, ["scheduler"], ["recorder"], ["valkey"]):
            await self._supervisor.stop(names)
        if self._keeping_whole:
            self._keeping_whole.cancel()
            await asyncio.gather(self._keeping_whole, return_exceptions=True)
        if self._settings.socket:
            embedded.tidy(self._settings.socket, self._settings.data_dir)
        self._say("stopped")

    def _interrupt(self) -> None:
        self._interrupts += 1
        self._stop.set()
        if self._interrupts == 1:
            self._say("stopping; what runs is finished first (again to stop at once)")
        else:
            self._say("stopping at once")
            self._supervisor.kill()

    def _write_run(self) -> None:
        if self._listener.fileno() < 0:
            return  # draining: the file goes away with the last process
        host, port = self._listener.getsockname()[:2]
        processes = {
            name: {"pid": child.pid, "restarts": child.restarts} for name, child in self._supervisor.children.items()
        }
        values = {"supervisor": os.getpid(), "url": self._url, "host": host, "port": port, "started_at": self._started}
        # On a full disk it stays as it was: that must not end what runs.
        with suppress(OSError):
            data_dir.write_run(self._settings.data_dir, {**values, "processes": processes})

    def _say(self, message: str) -> None:
        self._journal.write("fabric", "INFO", message)


def _child_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """``-P`` keeps the working directory off the path; this puts the fabric's own place on it."""
    root = str(Path(fabric.__file__).parent.parent)
    paths = [root, *filter(None, [environ.get("PYTHONPATH")])]
    return {**environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


async def _ready(address: tuple[Any, ...], *, tls: bool) -> None:
    while True:
        if await _answers(address, tls=tls):
            return
        await asyncio.sleep(_LOOK_S)


async def _answers(address: tuple[Any, ...], *, tls: bool) -> bool:
    """Whether ``GET /health/ready`` is answered with 200. Waits while nobody serves the socket."""
    with suppress(OSError):
        reader, writer = await asyncio.open_connection(*address[:2], ssl=_unchecked() if tls else None)
        try:
            writer.write(b"GET /health/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return b" 200 " in await reader.readline()
        finally:
            writer.close()
    return False


def _unchecked() -> ssl.SSLContext:
    """For a socket that this very process has opened: whose name the certificate bears doesn't matter."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
