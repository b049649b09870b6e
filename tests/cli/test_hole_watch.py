"""After a full disk the embedded Valkey's append-only file is made whole while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from redis import Redis, ResponseError

from fabric.cli.hole_watch import keep_whole
from fabric.store import append_only
from tests.conftest import SmallDisk, Valkey, until

PATIENCE_S = 60.0


@asynccontextmanager
async def watched(disk: SmallDisk, server: Valkey) -> AsyncIterator[asyncio.Queue[str]]:
    """The levels of what is said."""
    said: asyncio.Queue[str] = asyncio.Queue()

    def say(level: str, message: str) -> None:
        said.put_nowait(level)

    watch = asyncio.create_task(keep_whole(server.socket, disk.folder, say, look_s=0.05))
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield said
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)


@pytest.fixture
def server(small_disk: SmallDisk) -> Iterator[Valkey]:
    server = Valkey(small_disk.folder)
    server.start()
    yield server
    server.kill()


async def test_a_file_with_a_hole_is_written_anew(small_disk: SmallDisk, server: Valkey) -> None:
    keys = small_disk.leave_a_hole(server)
    assert holes(small_disk) == 1
    async with watched(small_disk, server) as said:
        assert await said.get() == "WARNING"
        while holes(small_disk):
            await asyncio.sleep(0.05)
    server.kill()
    server.start()
    with Redis.from_url(server.url) as redis:
        assert set(redis.keys()) == keys


async def test_a_whole_file_is_left_alone(small_disk: SmallDisk, server: Valkey) -> None:
    async with watched(small_disk, server) as said:
        with Redis.from_url(server.url) as redis:
            for number in range(200):
                redis.set(f"key-{number}", "x" * 1000)
                await asyncio.sleep(0.001)
            server.kill()
            server.start()
            until(lambda: redis.ping())
            redis.bgrewriteaof()
            until(lambda: not redis.info("persistence")["aof_rewrite_in_progress"])
            for number in range(200):
                redis.set(f"more-{number}", "x" * 1000)
                await asyncio.sleep(0.001)
            assert redis.info("persistence")["aof_rewrites"] == 1
        assert said.empty()


async def test_it_says_when_the_disk_is_full_and_when_it_has_room_again(small_disk: SmallDisk, server: Valkey) -> None:
    small_disk.fill()
    with Redis.from_url(server.url) as redis, pytest.raises(ResponseError, match="MISCONF"):
        for number in range(100):
            redis.set(f"full-{number}", "x" * 5000)
    async with watched(small_disk, server) as said:
        assert await said.get() == "ERROR"
        small_disk.free()
        assert await said.get() == "INFO"


def holes(disk: SmallDisk) -> int:
    return sum(len(append_only.condition(file).holes) for file in append_only.files(disk.folder))
