"""The ledger for an event loop: its calls block, so they run on threads of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, text

from fabric.ledger import Ledger

P = ParamSpec("P")
T = TypeVar("T")

#: As many as the ledger has connections: more would wait for one inside their thread.
_THREADS = 8


class LedgerThreads:
    def __init__(self, url: str) -> None:
        """Raises ``ConfigError`` as ``Ledger`` does."""
        self._ledger = Ledger(url, connections=_THREADS)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="ledger")
        self._checking: asyncio.Future[None] | None = None

    async def read(self, query: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Raises ``Unavailable`` when the database is away."""
        return await self._run(partial(self._ledger.read, query, *args, **kwargs))

    async def write(self, query: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """One transaction. Raises ``Unavailable`` when the database is away or locked."""
        return await self._run(partial(self._ledger.write, query, *args, **kwargs))

    async def ping(self) -> None:
        """One check at a time, so that a database that hangs can't take all threads. Raises ``Unavailable``."""
        if self._checking is None or self._checking.done():
            self._checking = asyncio.ensure_future(self.read(_nothing))
        await asyncio.shield(self._checking)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._ledger.close()

    async def _run(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)


def _nothing(connection: Connection) -> None:
    connection.execute(text("SELECT 1"))
