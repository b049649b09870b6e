"""Which models are in memory: who is loaded, who is put away, and that nobody waits for ever or thrashes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

import pytest

from fabric.contracts.errors import ConfigError, EngineAway, EngineUnavailable
from workers.engines.shelf import Place, Shelf

GIB = 2**30


class Model:
    """One that says what happens to it."""

    def __init__(self, shelf: Shelf, story: list[str], name: str, need: int, load_s: float = 0.0) -> None:
        self.name = name
        self.story = story
        self.load_s = load_s
        self.error: Exception | None = None
        self.place: Place = shelf.place(name, need, self._load, self._unload)

    async def _load(self) -> None:
        self.story.append(f"load {self.name}")
        await asyncio.sleep(self.load_s)
        if self.error is not None:
            raise self.error

    async def _unload(self) -> None:
        assert not self.place.in_use
        self.story.append(f"unload {self.name}")

    async def ask(self, until: asyncio.Event | None = None) -> None:
        async with self.place.used():
            assert self.place.state == "loaded"
            self.story.append(f"use {self.name}")
            if until is not None:
                await until.wait()


def shelf_of(memory: int, *needs: int, turn_s: float = 0.0) -> tuple[Shelf, list[str], list[Model]]:
    shelf, story = Shelf(memory, turn_s=turn_s), list[str]()
    return shelf, story, [Model(shelf, story, chr(ord("a") + n), need) for n, need in enumerate(needs)]


@contextlib.asynccontextmanager
async def patiently() -> Any:
    async with asyncio.timeout(30):
        yield


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not true():
            await asyncio.sleep(0.001)


async def test_what_fits_is_loaded_at_the_start_and_stays() -> None:
    shelf, story, models = shelf_of(10, 4, 4, 4)
    for model in models:
        await shelf.warm(model.place)
    assert [model.place.state for model in models] == ["loaded", "loaded", "evicted"]
    for _ in range(3):
        await models[0].ask()
        await models[1].ask()
    assert story == ["load a", "load b", *["use a", "use b"] * 3]


async def test_the_one_that_was_idle_for_longest_goes() -> None:
    shelf, story, (a, b, c) = shelf_of(10, 4, 4, 4)
    await shelf.warm(a.place)
    await shelf.warm(b.place)
    await a.ask()
    async with patiently():
        await c.ask()
    assert story[-3:] == ["unload b", "load c", "use c"]
    assert [model.place.state for model in (a, b, c)] == ["loaded", "evicted", "loaded"]


async def test_as_many_go_as_must() -> None:
    shelf, story, (a, b, c) = shelf_of(10, 3, 3, 9)
    await shelf.warm(a.place)
    await shelf.warm(b.place)
    async with patiently():
        await c.ask()
    assert story == ["load a", "load b", "unload a", "unload b", "load c", "use c"]


async def test_one_with_a_request_in_flight_stays_until_it_is_finished() -> None:
    shelf, story, (a, b) = shelf_of(10, 8, 8)
    await shelf.warm(a.place)
    finish = asyncio.Event()
    running = asyncio.create_task(a.ask(finish))
    await until(lambda: a.place.in_use)
    waiting = asyncio.create_task(b.ask())
    await until(lambda: a.place.closing)
    late = asyncio.create_task(a.ask())  # comes when it has had its turn
    await asyncio.sleep(0.01)
    assert a.place.state == "loaded" and b.place.state == "evicted"
    finish.set()
    async with patiently():
        await asyncio.gather(running, waiting, late)
    assert story == ["load a", "use a", "unload a", "load b", "use b", "unload b", "load a", "use a"]


async def test_who_does_not_want_it_any_more_closes_nobody() -> None:
    shelf, story, (a, b) = shelf_of(10, 8, 8)
    await shelf.warm(a.place)
    finish = asyncio.Event()
    running = asyncio.create_task(a.ask(finish))
    await until(lambda: a.place.in_use)
    waiting = asyncio.create_task(b.ask())
    await until(lambda: a.place.closing)
    late = asyncio.create_task(a.ask())
    waiting.cancel()
    async with patiently():
        await late  # although the first is still at work
    finish.set()
    await running
    assert "unload a" not in story and b.place.state == "evicted"


async def test_a_storm_that_alternates_does_not_thrash() -> None:
    _, story, models = shelf_of(10, 8, 8, turn_s=0.3)
    started = time.monotonic()
    async with patiently():
        await asyncio.gather(*(models[n % 2].ask() for n in range(200)))
    loads = sum(event.startswith("load") for event in story)
    assert loads == 2  # all of one model's requests together, then all of the other's

    async def client(model: Model) -> None:
        for _ in range(20):
            await model.ask()
            await asyncio.sleep(0.01)

    async with patiently():
        await asyncio.gather(*(client(models[n % 2]) for n in range(4)))
    loads = sum(event.startswith("load") for event in story)
    assert loads <= 2 + (time.monotonic() - started) / 0.3


async def test_a_turn_is_longer_than_loading() -> None:
    shelf, story, (a, b) = shelf_of(10, 8, 8)
    a.load_s = 0.2
    await shelf.warm(a.place)
    loaded = time.monotonic()
    async with patiently():
        await b.ask()
    assert time.monotonic() - loaded > 0.5
    assert story[-1] == "use b"


async def test_whoever_waits_longest_comes_next() -> None:
    shelf, story, (a, b, c) = shelf_of(10, 8, 8, 8, turn_s=0.05)
    await shelf.warm(a.place)
    first = asyncio.create_task(b.ask())
    await until(lambda: b.place.wanted)
    second = asyncio.create_task(c.ask())
    async with patiently():
        await asyncio.gather(first, second)
    assert [event for event in story if event.startswith("use")] == ["use b", "use c"]


async def test_more_than_there_is_counts_as_all_of_it() -> None:
    """Weights that are mapped from a file can be dropped and read again: such a model runs, but alone."""
    shelf, _, (a, b) = shelf_of(10, 40, 2)
    await shelf.warm(a.place)
    await shelf.warm(b.place)
    assert (a.place.state, b.place.state) == ("loaded", "evicted")


async def test_one_that_cannot_be_loaded_is_told_of_once_and_harms_no_other() -> None:
    shelf, _, (a, b) = shelf_of(10, 8, 8)
    await shelf.warm(a.place)
    b.error = ConfigError("no such template")
    async with patiently():
        with pytest.raises(ConfigError):
            await b.ask()
        with pytest.raises(EngineAway):  # it isn't tried again
            await b.ask()
        await a.ask()
    assert (b.place.failed, b.place.state) == (True, "evicted")


async def test_one_that_may_be_loaded_later_is_tried_again() -> None:
    _, story, (a,) = shelf_of(10, 8)
    a.error = EngineUnavailable("killed")
    async with patiently():
        with pytest.raises(EngineUnavailable):
            await a.ask()
        a.error = None
        await a.ask()
    assert story == ["load a", "load a", "use a"]


async def test_an_unforeseen_failure_reaches_who_waits() -> None:
    _, _, (a, b) = shelf_of(10, 8, 8)
    a.error = RuntimeError("a bug")
    async with patiently():
        with pytest.raises(EngineUnavailable, match="RuntimeError"):
            await a.ask()
        await b.ask()


async def test_removing_one_while_another_waits_gives_it_the_room() -> None:
    shelf, _, (a, b) = shelf_of(10, 8, 8, turn_s=600)
    await shelf.warm(a.place)
    waiting = asyncio.create_task(b.ask())
    await until(lambda: b.place.wanted)
    await shelf.remove(a.place)
    async with patiently():
        await waiting
    assert a.place.state == "evicted"
