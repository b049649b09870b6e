"""Keeps a set of programs running, until they are stopped in order or one can't run at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

from fabric.cli.child import BACKOFF, EX_CONFIG, Backoff, Child, Program
from fabric.cli.journal import Journal
from fabric.contracts.errors import ConfigError, FabricError


class Supervisor:
    """For one event loop, on the main thread: children die with the thread that started them."""

    def __init__(
        self,
        journal: Journal,
        environ: Mapping[str, str],
        *,
        backoff: Backoff = BACKOFF,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.children: dict[str, Child] = {}
        self._journal = journal
        self._environ = environ
        self._backoff = backoff
        self._changed = changed
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def start(self, program: Program) -> Child:
        """Begins to keep ``program`` running. Its name must be new."""
        child = self._child(program)
        self.children[program.name] = child
        task = asyncio.create_task(child.keep_running(), name=program.name)
        self._tasks.add(task)
        task.add_done_callback(self._over)
        return child

    async def run(self, program: Program) -> None:
        """Runs ``program`` to its end.

        Raises:
            ConfigError: it says that its configuration can't work.
            FabricError: it failed in another way.
        """
        child = self._child(program)
        status = await child.run_once()
        if status == EX_CONFIG:
            raise ConfigError(child.last_words())
        if status != 0:
            raise FabricError(f"{program.name} failed. {child.last_words()}".rstrip())

    async def failed(self) -> None:
        """Waits until a program can't run at all, and raises why."""
        await asyncio.shield(self._failure)

    async def stop(self, names: Iterable[str]) -> None:
        """Stops these programs, side by side. Returns when they are gone."""
        await asyncio.gather(*(self.children[name].stop() for name in names if name in self.children))

    def kill(self) -> None:
        """Ends everything now."""
        for child in self.children.values():
            child.kill()

    def _child(self, program: Program) -> Child:
        return Child(program, self._journal, self._environ, backoff=self._backoff, changed=self._changed)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) and not self._failure.done():
            self._failure.set_exception(error)
            self._failure.exception()  # seen, also when nobody asks
