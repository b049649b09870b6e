"""Engines start side by side; one that is late, away or wrong harms no other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import pytest

from fabric.contracts.catalog import Deployment
from fabric.contracts.errors import ConfigError, EngineUnavailable
from workers import starting
from workers.engines.engine import Answer, Emit, Engine, Request
from workers.starting import start_all


class Model(Engine):
    """Starts when it is told to."""

    def __init__(self, name: str, *errors: Exception) -> None:
        super().__init__(Deployment(name=name, engine="mock", tier="cpu"))
        self.errors = list(errors)
        self.go = asyncio.Event()
        self.starts = 0
        self.up = self.closed = False

    @property
    def slots(self) -> int:
        return 4 if self.up else 0

    async def start(self) -> None:
        self.starts += 1
        await self.go.wait()
        if self.errors:
            raise self.errors.pop(0)
        self.up = True

    async def run(self, request: Request, emit: Emit) -> Answer:
        raise NotImplementedError

    async def close(self) -> None:
        self.closed = True


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not true():
            await asyncio.sleep(0.001)


async def test_all_start_at_once() -> None:
    models = [Model("a"), Model("b"), Model("c")]
    task = asyncio.create_task(start_all(models))
    await until(lambda: all(model.starts for model in models))
    for model in models:
        model.go.set()
    assert await task == set()
    assert all(model.up for model in models)


async def test_a_wrong_setting_ends_the_start_and_closes_all() -> None:
    wrong, slow = Model("a", ConfigError("no such file")), Model("b")
    wrong.go.set()
    async with asyncio.timeout(30):
        with pytest.raises(ConfigError, match="no such file"):
            await start_all([wrong, slow])
    assert wrong.closed and slow.closed and not slow.up


async def test_one_that_is_late_comes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "TOGETHER_S", 0.05)
    quick, slow = Model("quick"), Model("slow")
    quick.go.set()
    late = await start_all([quick, slow])
    assert (quick.slots, slow.slots) == (4, 0)
    slow.go.set()
    await asyncio.gather(*late)
    assert slow.slots == 4


async def test_one_that_is_away_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "_AGAIN_S", 0.01)
    model = Model("a", EngineUnavailable("Not there."), EngineUnavailable("Not there."))
    model.go.set()
    assert await start_all([model]) == set()
    assert (model.starts, model.up, model.closed) == (3, True, False)


async def test_one_that_turns_out_wrong_late_is_named_and_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(starting, "TOGETHER_S", 0.05)
    wrong = Model("wrong", ConfigError("too large"))
    late = await start_all([wrong])
    with caplog.at_level(logging.ERROR):
        wrong.go.set()
        await asyncio.gather(*late, return_exceptions=True)
        await until(lambda: "wrong can't be used: too large" in caplog.text)
    assert (wrong.slots, wrong.closed) == (0, False)
