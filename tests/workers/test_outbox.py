"""What leaves a worker, in order and in bulk, through every absence of the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fabric.contracts.errors import EngineError, Unavailable
from fabric.contracts.job import JobState
from fabric.store import Command
from fabric.store.transitions import UNSETTLED, Failure, Outcome, Piece
from workers.outbox import Outbox


class Shop:
    """In place of the store. Each call waits until ``open`` is set; answers that all counted, unless told otherwise."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[Any]]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.away = 0  #: how many calls fail first
        self.refused: set[str] = set()
        self.unsettled: set[str] = set()  #: streams that have a second try, or are one
        self.silenced: set[str] = set()  #: those of them whose twin speaks

    async def __call__(self, command: Command[Any]) -> Any:
        await self.open.wait()
        assert command.script is not None
        if self.away:
            self.away -= 1
            raise Unavailable("away")
        name, arguments = command.script.name, list(command.args[3:])
        if name == "speak":
            self.calls.append((name, [arguments[1]]))
            self.unsettled.discard(arguments[1])
            return arguments[1] not in self.silenced
        first, step = {"emit": (1, 3), "commit": (2, 7), "fail": (3, 9)}[name]
        ids = arguments[first::step]
        self.calls.append((name, ids))
        return [UNSETTLED if job in self.unsettled else int(job not in self.refused) for job in ids]

    @property
    def sent(self) -> list[tuple[str, Any]]:
        return [(name, job) for name, ids in self.calls for job in ids]


class Scene:
    def __init__(self) -> None:
        self.shop = Shop()
        self.lost: list[tuple[str, int]] = []
        self.outbox = Outbox(self.shop, lambda *attempt: self.lost.append(attempt))  # type: ignore[arg-type]

    def piece(self, job: str, attempt: int = 1) -> None:
        self.outbox.piece(Piece(job, attempt, b"{}"))

    def outcome(self, job: str, attempt: int = 1) -> None:
        self.outbox.outcome(Outcome(job, attempt, JobState.SUCCEEDED))

    def failure(self, job: str, attempt: int = 1) -> None:
        self.outbox.failure(Failure(job, attempt, 0, EngineError("no").info))

    async def drained(self) -> None:
        await asyncio.wait_for(self.outbox.drained(), 30)


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    scene = Scene()
    running = asyncio.create_task(scene.outbox.run())
    yield scene
    running.cancel()


async def test_nothing_put_in_is_nothing_to_wait_for(scene: Scene) -> None:
    await scene.drained()
    assert scene.shop.calls == []


async def test_a_jobs_pieces_come_before_its_end(scene: Scene) -> None:
    scene.piece("a")
    scene.piece("a")
    scene.outcome("a")
    scene.failure("b")
    await scene.drained()
    assert scene.shop.sent == [("emit", "a"), ("emit", "a"), ("commit", "a"), ("fail", "b")]


async def test_while_one_call_is_on_its_way_the_next_ones_collect(scene: Scene) -> None:
    scene.shop.open.clear()
    scene.outcome("first")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for number in range(50):
        scene.outcome(f"job_{number}")
    scene.shop.open.set()
    await scene.drained()
    assert [len(ids) for _, ids in scene.shop.calls] == [1, 50]


async def test_no_call_grows_without_bound(scene: Scene) -> None:
    for number in range(150):
        scene.outcome(f"job_{number}")
    await scene.drained()
    assert [len(ids) for _, ids in scene.shop.calls] == [64, 64, 22]


async def test_what_is_not_stored_yet_is_still_held(scene: Scene) -> None:
    scene.shop.open.clear()
    scene.outcome("on the way", attempt=2)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    scene.failure("waiting", attempt=3)
    assert scene.outbox.pending == {"on the way": 2, "waiting": 3}
    scene.shop.open.set()
    await scene.drained()
    assert scene.outbox.pending == {}


async def test_a_store_that_is_away_is_tried_until_it_is_back(scene: Scene) -> None:
    scene.shop.away = 3
    scene.outcome("a")
    await scene.drained()
    assert scene.shop.sent == [("commit", "a")]


async def test_a_piece_that_is_refused_stops_its_attempt(scene: Scene) -> None:
    scene.shop.refused = {"a"}
    scene.piece("a", attempt=4)
    scene.piece("b")
    await scene.drained()
    assert scene.lost == [("a", 4)]


async def test_a_late_outcome_is_told_without_its_content(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.shop.refused = {"a"}
    scene.outbox.outcome(Outcome("a", 1, JobState.SUCCEEDED, b'{"text":"my secret"}'))
    await scene.drained()
    assert "1 late outcomes were refused" in caplog.text
    assert "my secret" not in caplog.text


async def test_of_a_stream_that_is_tried_twice_one_speaks(scene: Scene) -> None:
    scene.shop.unsettled, scene.shop.silenced = {"speaks", "silent"}, {"silent"}
    for job in ("speaks", "other", "silent", "speaks"):
        scene.piece(job)
    scene.outcome("speaks")
    await scene.drained()
    first, *settled, again, end = scene.shop.calls
    assert first == ("emit", ["speaks", "other", "silent", "speaks"])
    assert sorted(settled) == [("speak", ["silent"]), ("speak", ["speaks"])]
    assert (again, end) == (("emit", ["speaks", "speaks"]), ("commit", ["speaks"]))
    assert scene.lost == [], "who is silent is told to stop, and says what it took"
