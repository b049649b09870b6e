"""First come, first served, however many seats somebody needs."""

from __future__ import annotations

import asyncio
import random

import pytest

from workers.engines.llamacpp.seats import Seats


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_large_party_is_not_overtaken() -> None:
    seats, order = Seats(3), list[str]()
    leave = {name: asyncio.Event() for name in ("one", "two", "all", "late")}

    async def party(name: str, count: int) -> None:
        async with seats.taken(count):
            order.append(name)
            await leave[name].wait()

    tasks = [
        asyncio.create_task(party(name, count)) for name, count in (("one", 1), ("two", 1), ("all", 3), ("late", 1))
    ]
    await turn()
    assert order == ["one", "two"]  # a seat is free, but "all" is first in line
    leave["one"].set()
    await turn()
    assert order == ["one", "two"]
    leave["two"].set()
    await turn()
    assert order == ["one", "two", "all"]
    leave["all"].set()
    leave["late"].set()
    await asyncio.gather(*tasks)
    assert order == ["one", "two", "all", "late"]


async def test_those_who_leave_the_line_do_not_hold_it_up() -> None:
    seats = Seats(2)
    async with seats.taken(1):
        waiting = asyncio.create_task(seats._take(2))
        behind = asyncio.create_task(seats._take(1))
        await turn()
        assert not behind.done()
        waiting.cancel()
        await asyncio.wait_for(behind, 10)
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_seat_given_in_the_turn_of_the_cancel_is_given_back() -> None:
    seats = Seats(1)
    await seats._take(1)
    waiting = asyncio.create_task(seats._take(1))
    await turn()
    seats._free += 1
    seats._seat()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    async with asyncio.timeout(10), seats.taken(1):
        pass


async def test_no_seat_is_lost_or_given_twice() -> None:
    seats, taken, most = Seats(5), 0, 0
    chance = random.Random(1)

    async def party(count: int, turns: int) -> None:
        nonlocal taken, most
        async with seats.taken(count):
            taken += count
            most = max(most, taken)
            try:
                for _ in range(turns):
                    await asyncio.sleep(0)
            finally:
                taken -= count

    tasks = [asyncio.create_task(party(chance.randint(1, 5), chance.randint(0, 3))) for _ in range(300)]
    for _ in range(200):
        await asyncio.sleep(0)
        chance.choice(tasks).cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert most == 5
    async with asyncio.timeout(10), seats.taken(5):
        pass
