"""Workers of one account obey its rate limit together: two of them on one Redis, against one API that counts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import pytest

from fabric.contracts.catalog import Deployment
from fabric.store import AsyncStore
from workers.engines.limit_headers import Window
from workers.engines.provider_limits import LocalBoard, RateGate, Spent, gate_of
from workers.shared_limits import SharedBoard, SharedLimits, limit_id

BIG = Deployment(name="big", engine="openai", tier="cloud", model="m", api_key_env="KEY")
#: Longer than any test takes.
LONG_S = 600.0


class Worker:
    """The part of a worker that this is about."""

    def __init__(self, url: str, name: str) -> None:
        self.store = AsyncStore(url, connections=8)
        self._limits = SharedLimits(name)
        self.board: SharedBoard = self._limits.board(BIG)
        self.gate: RateGate = gate_of(self.board)
        self._task = asyncio.create_task(self._limits.run(self.store))

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.store.close()

    async def passes(self, patience_s: float = 0.0) -> bool:
        try:
            await self.gate.enter(patience_s)
        except Spent:
            return False
        return True


@pytest.fixture
async def worker(valkey: Any) -> AsyncIterator[Callable[[str], Worker]]:
    started = []

    def start(name: str) -> Worker:
        started.append(Worker(valkey.url, name))
        return started[-1]

    yield start
    for one in started:
        await one.close()


async def until(what: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not what():
            await asyncio.sleep(0.002)


def left(count: int, reset: str = "600s", size: int = 100) -> dict[str, str]:
    return {
        "x-ratelimit-remaining-requests": str(count),
        "x-ratelimit-reset-requests": reset,
        "x-ratelimit-limit-requests": str(size),
    }


async def listening(store: AsyncStore, count: int) -> None:
    async with asyncio.timeout(20):
        while (await store.redis.pubsub_numsub("fabric:limits"))[0][1] < count:
            await asyncio.sleep(0.002)


async def test_a_pause_reaches_the_others_at_once(worker: Any) -> None:
    one, other = worker("one"), worker("other")
    await listening(one.store, 2)
    one.gate.refused(await one.gate.enter(0), {"retry-after": "60"})
    told = time.monotonic()
    await until(lambda: other.gate.paused_s > 0)
    assert 55 < other.gate.paused_s <= 60
    assert time.monotonic() - told < 10  # it is pushed: a report every quarter of a second tells of no pause
    assert not await other.passes(1)


async def test_a_worker_that_starts_later_hears_of_it(worker: Any) -> None:
    one = worker("one")
    await listening(one.store, 1)
    one.gate.refused(await one.gate.enter(0), {"retry-after": "60"})
    await until(lambda: not one.board._telling)
    late = worker("late")
    await until(lambda: late.gate.paused_s > 0)


async def test_what_is_left_is_shared_out(worker: Any) -> None:
    one, other = worker("one"), worker("other")
    await listening(one.store, 2)
    one.gate.answered(await one.gate.enter(0), left(20))
    await until(lambda: other.board.asks)  # it was told that there is a limit
    passed = 0
    for _ in range(60):
        for each in (one, other):
            passed += await each.passes()
    # What the other has reserved comes back in a moment.
    with suppress(TimeoutError):
        async with asyncio.timeout(20):
            while passed < 20:
                passed += await one.passes(1) + await other.passes(1)
    assert passed == 20
    assert not await one.passes(1) and not await other.passes(1)


async def test_nobody_asks_redis_for_every_request(worker: Any) -> None:
    one = worker("one")
    await listening(one.store, 1)
    one.gate.answered(await one.gate.enter(0), left(9_000, size=10_000))
    before = (await one.store.redis.info("commandstats"))["cmdstat_evalsha"]["calls"]
    for _ in range(40):
        rounds = await asyncio.gather(*(one.gate.enter(1) for _ in range(50)))
        for round_ in rounds:
            one.gate.answered(round_, {})
    after = (await one.store.redis.info("commandstats"))["cmdstat_evalsha"]["calls"]
    assert after - before < 2_000 / 10


async def test_tokens_that_are_spent_pause_everybody(worker: Any) -> None:
    one, other = worker("one"), worker("other")
    await listening(one.store, 2)
    spent = {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "40s"}
    one.gate.answered(await one.gate.enter(0), spent)
    await until(lambda: other.gate.paused_s > 30)


async def test_a_worker_begins_slowly_where_nothing_is_known() -> None:
    now = 1000.0
    gate = RateGate(LocalBoard(lambda: now), lambda: now, first=16)

    async def crowd() -> int:
        passed = 0
        with suppress(Spent):
            while passed < 1_000:
                await gate.enter(0)
                passed += 1
        return passed

    assert await crowd() == 16
    now += 1
    assert await crowd() == 32  # the API is slow: more go, but not all
    gate.answered(0, {})
    assert await crowd() == 1_000


async def test_without_redis_a_worker_goes_by_what_it_sees(new_valkey: Any) -> None:
    server = new_valkey()
    one = Worker(server.url, "one")
    try:
        await listening(one.store, 1)
        one.gate.answered(await one.gate.enter(0), left(3))
        server.kill()
        async with asyncio.timeout(60):
            assert [await one.passes(0) for _ in range(5)] == [True, True, True, False, False]
            one.board.answered(Window(0, LONG_S, True))
            assert one.gate.paused_s > LONG_S - 60
    finally:
        await one.close()


def test_deployments_of_one_key_and_model_share_a_limit() -> None:
    same = BIG.model_copy(update={"name": "other"})
    assert limit_id(BIG) == limit_id(same)
    for field, value in (("base_url", "http://x/v1"), ("model", "n"), ("api_key_env", "OTHER")):
        assert limit_id(BIG) != limit_id(BIG.model_copy(update={field: value}))
