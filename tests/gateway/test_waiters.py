"""``Waiters``: which jobs are stopped when requests leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

from fabric.contracts.ids import new_id
from fabric.contracts.job import JobSpec, JobState
from fabric.gateway.waiters import Waiters
from fabric.store import AsyncStore, reads, transitions
from fabric.store.transitions import NewJob

if TYPE_CHECKING:
    from tests.conftest import Valkey

HERE = "fabric:gateway:here"


@pytest.fixture
async def async_store(valkey: Valkey) -> AsyncIterator[AsyncStore]:
    store = AsyncStore(valkey.url)
    yield store
    await store.close()


async def queued(store: AsyncStore, watcher: str = HERE) -> str:
    spec = JobSpec(id=new_id("job"), endpoint="/v1/completions", model="small")
    await store(transitions.accept([NewJob(spec, b"", watcher=watcher)]))
    return spec.id


async def settled(waiters: Waiters) -> None:
    while waiters.busy:
        await asyncio.sleep(0.005)


async def test_the_last_one_to_leave_stops_the_job(async_store: AsyncStore) -> None:
    waiters = Waiters(async_store, HERE, return_s=0)
    jobs = [await queued(async_store) for _ in range(300)]
    for job in jobs:
        waiters.left(job, may_return=False)
    await settled(waiters)
    assert {await async_store(reads.state(job)) for job in jobs} == {JobState.CANCELLED}


async def test_while_another_waits_it_goes_on(async_store: AsyncStore) -> None:
    waiters = Waiters(async_store, HERE, return_s=0)
    job = await queued(async_store)
    with waiters.waiting(job):
        with waiters.waiting(job):
            pass
        waiters.left(job, may_return=False)
        await settled(waiters)
        assert await async_store(reads.state(job)) is JobState.QUEUED
    waiters.left(job, may_return=False)
    await settled(waiters)
    assert await async_store(reads.state(job)) is JobState.CANCELLED


async def test_who_came_back_in_time_still_waits(async_store: AsyncStore) -> None:
    waiters = Waiters(async_store, HERE, return_s=0)
    job = await queued(async_store)
    waiters.left(job, may_return=True)
    with waiters.waiting(job):
        await settled(waiters)
    assert await async_store(reads.state(job)) is JobState.QUEUED


async def test_a_job_that_another_gateway_watches_goes_on(async_store: AsyncStore) -> None:
    waiters = Waiters(async_store, HERE, return_s=0)
    ours, shared = await queued(async_store), await queued(async_store)
    await async_store(transitions.watch(shared, "fabric:gateway:there"))
    for job in (ours, shared):
        waiters.left(job, may_return=True)
    await settled(waiters)
    assert await async_store(reads.state(ours)) is JobState.CANCELLED
    assert await async_store(reads.state(shared)) is JobState.QUEUED


async def test_at_the_end_what_was_to_be_stopped_is(async_store: AsyncStore) -> None:
    waiters = Waiters(async_store, HERE, return_s=3600)
    left, expected = await queued(async_store), await queued(async_store)
    waiters.left(left, may_return=False)
    waiters.left(expected, may_return=True)
    await waiters.close()
    assert await async_store(reads.state(left)) is JobState.CANCELLED
    assert await async_store(reads.state(expected)) is JobState.QUEUED
