"""What the routes of one gateway process share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any, TypeVar

from fastapi import Depends
from starlette.requests import Request

from fabric.batches.storage import Storage
from fabric.contracts.errors import Unavailable
from fabric.contracts.ids import new_id
from fabric.gateway.intake import Intake
from fabric.gateway.ledger_threads import LedgerThreads
from fabric.gateway.listener import Listener
from fabric.gateway.metrics import Metrics
from fabric.gateway.settings import GatewaySettings
from fabric.gateway.waiters import Waiters
from fabric.routing import policy_hash
from fabric.store import AsyncStore, Command

T = TypeVar("T")


class Gateway:
    def __init__(self, settings: GatewaySettings) -> None:
        """
        Raises:
            ConfigError: the database URL can't be read.
        """
        self.settings = settings
        self.catalog = settings.catalog
        self.policy_hash = policy_hash(settings.catalog)
        self.started_s = int(time.time())
        self.metrics = Metrics()
        self.store = AsyncStore(settings.redis_url, timeout_s=settings.store_timeout_s)
        self.listener = Listener(self.store, settings.redis_url, new_id("gateway"))
        self.intake = Intake(
            self.store, self.metrics, live_limit=settings.live_limit, timeout_s=settings.store_timeout_s
        )
        self.waiters = Waiters(self.store, self.listener.channel, return_s=settings.return_s)
        self.ledger = LedgerThreads(settings.database_url)
        self.storage = Storage(settings.files_dir)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Hears events while it is open. The store and the ledger may be away: readiness says so."""
        listening = asyncio.create_task(self.listener.run(), name="listener")
        try:
            yield
        finally:
            await self.waiters.close()
            listening.cancel()
            with suppress(asyncio.CancelledError):
                await listening
            await self.store.close()
            self.ledger.close()

    async def ask(self, command: Command[T]) -> T:
        """A call to the store that answers soon, one way or the other.

        Raises:
            Unavailable: the store is away.
        """
        return await self._soon(self.store(command))

    async def ask_all(self, commands: Iterable[Command[T]]) -> list[T]:
        """Reads in one round trip. Raises ``Unavailable``."""
        return await self._soon(self.store.all(commands))

    async def _soon(self, call: Coroutine[Any, Any, T]) -> T:
        try:
            async with asyncio.timeout(self.settings.store_timeout_s):
                return await call
        except TimeoutError:
            raise Unavailable("The job store (Redis) doesn't answer; try again.", retry_after_s=1) from None


async def _here(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


#: For FastAPI's routes: ``gateway: Here``.
Here = Annotated[Gateway, Depends(_here)]
