"""Texts are searched before their jobs are accepted: labels go up, and what may not leave gets placeholders."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from fabric.contracts.catalog import Catalog
from fabric.contracts.job import JobSpec
from fabric.contracts.request import InferenceRequest
from fabric.gateway.caller import Caller
from fabric.privacy import Screen, Screened, screen_of
from fabric.routing import label_blocks
from fabric.store.transitions import NewJob
from fabric.trail import Trail

#: Tokens, as estimated, from which on a text is searched beside the loop. Fewer cost less than the thread does;
#: more would hold up the other requests for a millisecond and longer.
_THREAD_TOKENS = 16_000
#: For requests that wait for Presidio: of their own, so that they hold up nothing else that threads are for.
_READERS = ThreadPoolExecutor(64, "screening")


async def screened(job: NewJob, request: InferenceRequest, catalog: Catalog, caller: Caller, trail: Trail) -> NewJob:
    """The job with the label that it has from here on, and the text that each tier may see."""
    screen = screen_of(catalog)
    if screen.looks(job.spec.privacy):
        found = await _found(screen, job.spec, request)
        _note(job.spec, found, caller, trail)
        job = replace(job, spec=found.spec, payload=found.payload, placeholders=found.placeholders)
    spec = job.spec
    if label_blocks(spec, catalog.by_model[spec.model].deployments, catalog.privacy.of(spec.privacy)):
        return replace(job, blocked=True)
    return job


async def screened_spec(spec: JobSpec, request: InferenceRequest, catalog: Catalog) -> JobSpec:
    """As ``screened``, for a dry run."""
    screen = screen_of(catalog)
    return (await _found(screen, spec, request)).spec if screen.looks(spec.privacy) else spec


async def _found(screen: Screen, spec: JobSpec, request: InferenceRequest) -> Screened:
    if screen.slow:
        return await asyncio.get_running_loop().run_in_executor(_READERS, screen.screened, spec, request)
    if spec.prompt_tokens < _THREAD_TOKENS:
        return screen.screened(spec, request)
    return await asyncio.to_thread(screen.screened, spec, request)


def _note(before: JobSpec, found: Screened, caller: Caller, trail: Trail) -> None:
    after = found.spec
    if found.placeholders:
        detail: dict[str, object] = {"label": after.privacy, "entities": after.entities}
        trail.note("request.redacted", caller.actor, tenant=caller.tenant, detail=detail)
    if after.privacy != before.privacy:
        detail = {"from": before.privacy, "to": after.privacy, "entities": after.entities}
        trail.note("label.raised", caller.actor, tenant=caller.tenant, detail=detail)
