"""Requests meet the rules of the door; what a rule wants to see twice is sent a second time, unanswered."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace

from starlette.datastructures import Headers

from fabric.contracts.catalog import Catalog
from fabric.contracts.errors import FabricError
from fabric.contracts.ids import new_id
from fabric.contracts.job import JobSpec
from fabric.contracts.key import Permissions
from fabric.contracts.rule import HEADER_CHARS
from fabric.gateway.caller import Caller
from fabric.gateway.intake import Intake
from fabric.routing import admit, budgets, limits
from fabric.store.transitions import NewJob

log = logging.getLogger(__name__)

#: Shadows on their way to the store; beyond it they are left out: they must not hold up what is answered.
_MOST_SHADOWS = 256


def admitted(job: NewJob, headers: Headers, catalog: Catalog, hash_: str) -> tuple[NewJob, NewJob | None]:
    """The job as the rules let it in, and its shadow, to be sent once the job is accepted.

    Raises:
        Denied: a rule refuses the request.
    """
    if not catalog.rules:
        return job, None
    spec = with_headers(job.spec, headers, catalog)
    admission = admit(spec, catalog, hash_, time.time_ns() // 1_000_000)
    job = replace(job, spec=admission.spec)
    if admission.shadow is None:
        return job, None
    return job, _shadow(job, admission.shadow)


def with_headers(spec: JobSpec, headers: Headers, catalog: Catalog) -> JobSpec:
    """With those headers of its request that rules may read."""
    if not catalog.rule_headers:
        return spec
    read = ((name, headers.get(name)) for name in catalog.rule_headers)
    return replace(spec, headers=tuple((name, value[:HEADER_CHARS]) for name, value in read if value is not None))


def _shadow(job: NewJob, deployment: str) -> NewJob:
    """The same text under the same label for one deployment, behind all other work, watched by nobody."""
    twin = replace(
        job.spec,
        id=new_id("job"),
        priority="batch",
        deployment=deployment,
        stream=False,
        shadow_of=job.spec.id,
    )
    return NewJob(twin, job.payload, placeholders=job.placeholders)


def charged(job: NewJob, catalog: Catalog, permissions: Permissions) -> NewJob:
    """With what it may take out of budgets. Raises ``BudgetUsedUp``."""
    own = permissions.budgets(job.spec.key_id)
    if not catalog.budgets and not own:
        return job
    spec, charges = budgets.charged(job.spec, catalog, time.time_ns() // 1_000_000, own)
    return replace(job, spec=spec, charges=charges)


def metered(job: NewJob, caller: Caller, catalog: Catalog) -> NewJob:
    """With what it takes of rate limits. Raises ``LargerThanLimit``."""
    of_key = caller.permissions.limits
    if of_key is None and not catalog.tenant_limits:
        return job
    return replace(job, limits=limits.metered(job.spec, of_key, catalog))


class Shadows:
    """Sends shadows beside the way of requests. One that can't be sent is left out: nobody waits for it."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._sending: set[asyncio.Task[None]] = set()

    def send(self, job: NewJob) -> None:
        if len(self._sending) < _MOST_SHADOWS:
            task = asyncio.create_task(self._send(job))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    async def _send(self, job: NewJob) -> None:
        try:
            await self._intake.accept(job)
        except FabricError as error:
            log.warning("a shadow job was left out: %s", error.error_code)

    async def close(self) -> None:
        for task in list(self._sending):
            task.cancel()
        await asyncio.gather(*self._sending, return_exceptions=True)
