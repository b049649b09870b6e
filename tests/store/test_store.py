"""``Store`` and ``AsyncStore``: how commands run, and what happens when the server is away or has forgotten."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis.asyncio

from fabric.contracts.errors import Unavailable
from fabric.contracts.job import JobSpec, JobState
from fabric.store import AsyncStore, Store, reads, transitions
from fabric.store.transitions import NewJob

if TYPE_CHECKING:
    from tests.conftest import Valkey
    from tests.store.conftest import Jobs


def test_a_script_that_the_server_has_lost_is_loaded_again(jobs: Jobs, store: Store) -> None:
    jobs.queued()
    store.redis.script_flush()
    jobs.queued()
    assert len(jobs.lane()) == 2


async def test_also_on_asyncio(jobs: Jobs, store: Store, valkey: Valkey) -> None:
    asynchronous = AsyncStore(valkey.url)
    store.redis.script_flush()
    spec = jobs.spec()
    (answer,) = await asynchronous(transitions.accept([NewJob(spec, b"p")]))
    record = await asynchronous(reads.job(spec.id))
    await asynchronous.close()
    assert answer.verdict == "accepted"
    assert record is not None
    assert record.spec == spec


async def test_many_reads_are_one_round_trip(jobs: Jobs, valkey: Valkey) -> None:
    known = [jobs.queued(), jobs.running(), jobs.ended()]
    asynchronous = AsyncStore(valkey.url)
    states = await asynchronous.all(reads.state(job) for job in [*known, "job_unknown"])
    records = await asynchronous.all(map(reads.summary, [*known, "job_unknown"]))
    assert await asynchronous.all([]) == []
    await asynchronous.close()
    assert states == [JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED, None]
    assert records == [*(replace(jobs.record(job), result=None) for job in known), None]


async def test_a_server_that_is_away_is_unavailable_and_comes_back_whole(
    jobs: Jobs, store: Store, valkey: Valkey
) -> None:
    job = jobs.running()
    asynchronous = AsyncStore(valkey.url)
    valkey.kill()
    try:
        with pytest.raises(Unavailable, match="can't be reached"):
            jobs.state(job)
        with pytest.raises(Unavailable, match="can't be reached"):
            await asynchronous(reads.state(job))
        with pytest.raises(Unavailable, match="can't be reached"):
            await asynchronous.all([reads.state(job)])
    finally:
        valkey.start()
    assert jobs.commit(job)
    assert await asynchronous(reads.ping())
    await asynchronous.close()


def test_a_refused_write_says_so(store: Store) -> None:
    store.redis.set("fabric:live", "not a sorted set")
    with pytest.raises(Unavailable, match="refused"):
        store(transitions.accept([NewJob(JobSpec("job_1", "/v1/completions", "m"), b"secret")]))


def test_an_error_never_quotes_the_payload(store: Store) -> None:
    store.redis.set("fabric:live", "not a sorted set")
    spec = JobSpec("job_1", "/v1/completions", "m")
    with pytest.raises(Unavailable) as caught:
        store(transitions.accept([NewJob(spec, b"my secret")]))
    assert "my secret" not in str(caught.value)
    assert "my secret" not in str(caught.value.__cause__)


def test_every_script_ships_with_the_package() -> None:
    listed = (
        "from importlib.resources import files; print(*(f.name for f in (files('fabric.store')/'scripts').iterdir()))"
    )
    names = subprocess.run([sys.executable, "-c", listed], capture_output=True, text=True, check=True).stdout.split()
    here = Path(__file__).parents[2] / "fabric" / "store" / "scripts"
    assert {"accept.lua", "commit.lua"} <= set(names)
    assert {name for name in names if name.endswith(".lua")} == {file.name for file in here.glob("*.lua")}


@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
async def test_a_task_that_is_cancelled_in_the_moment_of_sending_ends(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch, many: bool
) -> None:
    """What sends is done in the same turn: there ``asyncio.wait_for`` of Python 3.11 forgets the cancellation."""
    asynchronous = AsyncStore(valkey.url)
    await asynchronous(reads.ping())
    sent, ready = redis.asyncio.connection.AbstractConnection._send_packed_command, asyncio.Event()
    task: asyncio.Task[None] | None = None

    async def cancelled_meanwhile(*arguments: Any) -> None:
        await sent(*arguments)
        if ready.is_set() and task is not None:
            ready.clear()
            task.cancel()

    async def for_ever() -> None:
        while True:
            if many:
                await asynchronous.all([reads.ping()])
            else:
                await asynchronous(reads.ping())

    monkeypatch.setattr(redis.asyncio.connection.AbstractConnection, "_send_packed_command", cancelled_meanwhile)
    task = asyncio.create_task(for_ever())
    ready.set()
    await asyncio.wait([task], timeout=10)
    ended = task.cancelled()
    monkeypatch.undo()
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=0.1)
    assert ended
    assert await asynchronous(reads.ping()), "others go on"
    await asynchronous.close()


async def test_who_was_cancelled_before_may_still_tidy_up(valkey: Valkey) -> None:
    asynchronous = AsyncStore(valkey.url)
    begun, tidied = asyncio.Event(), []

    async def work() -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            tidied.append(await asynchronous(reads.ping()))

    task = asyncio.create_task(work())
    await begun.wait()
    task.cancel()
    await asyncio.wait([task])
    await asynchronous.close()
    assert tidied == [True]
    assert task.cancelled()
