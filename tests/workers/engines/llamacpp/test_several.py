"""Several models on one worker, in memory that holds one of them: loaded on demand, put away, honest about it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from fabric.contracts.catalog import Deployment
from fabric.contracts.errors import ConfigError
from fabric.settings.defaults import shipped_model
from workers.engines.llamacpp import LlamaCppEngine
from workers.engines.shelf import Shelf

if TYPE_CHECKING:
    from conftest import Caller

MIB = 2**20


def engine(shelf: Shelf, name: str, **more: Any) -> LlamaCppEngine:
    fields = {"context_window": 512, "slots": 2, "capabilities": ["chat"], "model": str(shipped_model()), **more}
    options = {"threads": 1, "start_timeout_s": 120.0}
    return LlamaCppEngine(Deployment(name=name, engine="llamacpp", tier="cpu", options=options, **fields), shelf)


@asynccontextmanager
async def several(memory: int, *names: str, turn_s: float = 0.0) -> AsyncIterator[list[LlamaCppEngine]]:
    shelf = Shelf(memory, turn_s=turn_s)
    engines = [engine(shelf, name) for name in names]
    try:
        for one in engines:
            await one.start()
        yield engines
    finally:
        for one in engines:
            await one.close()


async def need() -> int:
    """What the model of these tests takes, by the estimate."""
    async with several(2**40, "probe") as (probe,):
        assert probe._place is not None
        return probe._place.need


def children() -> int:
    return sum("child.py" in " ".join(p.cmdline()) for p in psutil.Process().children(recursive=True))


async def test_models_take_turns_in_memory_for_one(caller: Callable[[LlamaCppEngine], Caller]) -> None:
    one = await need()
    async with several(int(one * 1.5), "a", "b") as (a, b):
        assert (a.state, b.state) == ("loaded", "evicted")
        # Slots are said also of a model that isn't loaded: otherwise nobody would ask for it.
        assert (a.slots, b.slots, b.context) == (2, 2, 512)
        assert children() == 1
        for asked, other in ((b, a), (a, b)):
            answer = await caller(asked).chat(max_tokens=4, temperature=0)
            assert answer.texts[0]
            assert (asked.state, other.state) == ("loaded", "evicted")
            assert children() == 1
    assert children() == 0


async def test_models_that_fit_together_stay(caller: Callable[[LlamaCppEngine], Caller]) -> None:
    one = await need()
    async with several(int(one * 2.5), "a", "b") as engines:
        assert [one.state for one in engines] == ["loaded", "loaded"]
        assert children() == 2


async def test_a_storm_for_two_models_is_answered_in_a_few_turns(caller: Callable[[LlamaCppEngine], Caller]) -> None:
    one = await need()
    async with several(int(one * 1.5), "a", "b", turn_s=0.2) as (a, b):
        loads = 0
        for place in (a._place, b._place):
            assert place is not None
            original = place._load

            async def counted(original: Any = original) -> None:
                nonlocal loads
                loads += 1
                await original()

            place._load = counted
        asked = [caller((a, b)[n % 2]).chat(max_tokens=2) for n in range(24)]
        answers = await asyncio.gather(*asked)
        assert all(answer.answer.usage.output_tokens for answer in answers)
        assert loads <= 4
        # Nobody's time in the engine holds the loading of a model.
        assert all((answer.answer.engine_s or 0) < 30 for answer in answers)


async def test_what_cannot_fit_alone_is_refused_with_numbers() -> None:
    shelf = Shelf(1 * MIB)
    with pytest.raises(ConfigError, match=r"needs 0\.\d GiB, 0\.0 GiB are free"):
        await engine(shelf, "a").start()


async def test_a_crashed_server_takes_the_slots_with_it(caller: Callable[[LlamaCppEngine], Caller]) -> None:
    async with several(2**40, "a") as (a,):
        pid = a._running.pid
        assert pid is not None and a.slots == 2
        psutil.Process(pid).kill()
        async with asyncio.timeout(60):
            while a.slots:
                await asyncio.sleep(0.001)
            assert a.state == "away"
            while not a.slots:
                await asyncio.sleep(0.01)
        assert a.state == "loaded"
        assert (await caller(a).chat(max_tokens=2)).texts
