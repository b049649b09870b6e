"""What the routes of one gateway process share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Annotated, Any, TypeVar

from fastapi import Depends
from starlette.requests import Request
from starlette.types import Scope

from fabric.batches.storage import Storage
from fabric.contracts.catalog import Catalog
from fabric.contracts.errors import Unavailable
from fabric.contracts.ids import new_id
from fabric.contracts.job import JobSpec
from fabric.contracts.job_seals import HomeSeals
from fabric.contracts.sealed import Seals
from fabric.gateway import rate_headers
from fabric.gateway.admission import Shadows
from fabric.gateway.broker import Broker
from fabric.gateway.configuration import Configuration
from fabric.gateway.intake import Intake
from fabric.gateway.keyring import Keyring
from fabric.gateway.ledger_threads import LedgerThreads
from fabric.gateway.listener import Listener
from fabric.gateway.metrics import Metrics
from fabric.gateway.outlook import Outlook
from fabric.gateway.rate_headers import Throttled
from fabric.gateway.restoring import Restoring
from fabric.gateway.room import Room
from fabric.gateway.settings import GatewaySettings
from fabric.gateway.waiters import Waiters
from fabric.ledger import Ledger
from fabric.privacy import screen_of
from fabric.routing import policy_hash, reading_zones
from fabric.store import AsyncStore, Command, Store, reads
from fabric.store.transitions import NewJob
from fabric.trail import Trail

T = TypeVar("T")


class Gateway:
    def __init__(self, settings: GatewaySettings) -> None:
        """
        Raises:
            ConfigError: the database URL can't be read.
        """
        self.settings = settings
        self.adopt(settings.catalog)
        self.started_s = int(time.time())
        self.metrics = Metrics()
        self.configuration = Configuration(self, settings.watch)
        self.store = AsyncStore(settings.redis_url, timeout_s=settings.store_timeout_s)
        self.seals = HomeSeals(settings.secrets)
        self.listener = Listener(self.store, settings.redis_url, new_id("gateway"), self.seals)
        self.intake = Intake(
            self.store, self.metrics, self._sealed, live_limit=settings.live_limit, timeout_s=settings.store_timeout_s
        )
        self.room = Room(settings.disk)
        self.broker = Broker(self.store)
        self.outlook = Outlook(self)
        self.shadows = Shadows(self.intake)
        self.waiters = Waiters(self.store, self.listener.channel, return_s=settings.return_s)
        self.ledger = LedgerThreads(settings.database_url)
        self.trail = Trail(
            Ledger(settings.database_url, connections=1),
            settings.secrets,
            Store(settings.redis_url, timeout_s=settings.store_timeout_s),
        )
        self.keyring = Keyring(
            self.ledger, settings.secrets, first_use=self.trail.first_use, may_be_open=settings.may_be_open
        )
        self.storage = Storage(settings.files_dir, Seals(settings.secrets))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Hears events while it is open. The store and the ledger may be away: readiness says so."""
        self.trail.start()
        running = [
            asyncio.create_task(self.listener.run(), name="listener"),
            asyncio.create_task(self.keyring.run(), name="keyring"),
            asyncio.create_task(self.configuration.run(), name="configuration"),
            asyncio.create_task(self.room.run(), name="room"),
            asyncio.create_task(self.broker.run(), name="broker"),
        ]
        try:
            yield
        finally:
            await self.waiters.close()
            await self.shadows.close()
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            await asyncio.to_thread(self.trail.close)
            await self.store.close()
            self.ledger.close()

    def adopt(self, catalog: Catalog) -> None:
        """For requests from now on. Those that are accepted keep the privacy rules that they came in under."""
        self.catalog = catalog
        self.policy_hash = policy_hash(catalog)
        screen_of(catalog)  # what reads texts is loaded before the first comes

    async def accept(self, job: NewJob, scope: Scope) -> str:
        """As ``Intake.accept``, and the answer to the request tells of rate limits. The id of the job."""
        self.room.check()
        self.broker.check()
        try:
            accepted = await self.intake.accept(job)
        except Throttled as error:
            rate_headers.keep(scope, error.levels)
            self.metrics.refusals.labels(error.scope, error.kind).inc()
            raise
        rate_headers.keep(scope, accepted.levels)
        return accepted.job_id

    def sealed_payload(self, spec: JobSpec, payload: bytes) -> bytes:
        model = self.catalog.by_model.get(spec.model)  # of another catalogue, perhaps
        rule = self.catalog.privacy.of(spec.privacy)
        return self.seals.payload(spec, payload, reading_zones(spec, model.deployments if model else (), rule))

    def _sealed(self, job: NewJob) -> NewJob:
        """As the store may have it: for those zones whose workers may read it."""
        return replace(
            job,
            payload=self.sealed_payload(job.spec, job.payload),
            placeholders=self.seals.placeholders(job.spec, job.placeholders),
        )

    async def restoring(self, tenant: str, job_id: str) -> Restoring:
        """What redaction took out of a job's text, ready to be put back. Raises ``Unavailable``, ``BrokenSeal``."""
        hidden = await self.ask(reads.placeholders(job_id))
        return Restoring(self.seals.opened_placeholders(tenant, job_id, hidden))

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
