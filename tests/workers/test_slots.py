"""The gate before an engine."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.contracts.errors import EngineAway
from fabric.contracts.job import PRIORITIES, Priority
from workers.slots import PATIENCE_S, Gate


class Visit:
    """Someone who goes through the gate and stays until told to leave."""

    def __init__(self, gate: Gate, priority: Priority = "standard") -> None:
        self.inside = False
        self._leave = asyncio.Event()
        self.task = asyncio.create_task(self._run(gate, priority))

    async def _run(self, gate: Gate, priority: Priority) -> None:
        async with gate.slot(priority):
            self.inside = True
            try:
                await self._leave.wait()
            finally:
                self.inside = False

    async def leave(self) -> None:
        self._leave.set()
        await self.task

    async def give_up(self) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_as_many_as_there_are_slots() -> None:
    gate = Gate(2)
    visits = [Visit(gate) for _ in range(4)]
    await settle()
    assert [visit.inside for visit in visits] == [True, True, False, False]
    await visits[0].leave()
    await settle()
    assert [visit.inside for visit in visits] == [False, True, True, False]
    for visit in visits[1:]:
        await visit.leave()


async def test_the_urgent_go_first_and_equals_in_order() -> None:
    gate = Gate(1)
    first = Visit(gate)
    await settle()
    waiting = [Visit(gate, p) for p in ("batch", "standard", "interactive", "interactive")]
    await settle()
    entered: list[int] = []
    last = first
    for _ in waiting:
        await last.leave()
        await settle()
        (now,) = [n for n, visit in enumerate(waiting) if visit.inside]
        entered.append(now)
        last = waiting[now]
    assert entered == [2, 3, 1, 0]
    await last.leave()


async def test_one_who_gives_up_waiting_leaves_no_gap() -> None:
    gate = Gate(1)
    first, second, third = Visit(gate), Visit(gate), Visit(gate)
    await settle()
    await second.give_up()
    await first.leave()
    await settle()
    assert third.inside
    await third.leave()


async def test_one_who_gives_up_at_the_moment_of_entering_hands_the_slot_on() -> None:
    gate = Gate(1)
    first, second, third = Visit(gate), Visit(gate), Visit(gate)
    await settle()
    first._leave.set()
    while not first.task.done():
        await asyncio.sleep(0)
    second.task.cancel()  # the slot is its already, and it hasn't run since
    await settle()
    assert not second.inside
    assert third.inside
    await third.leave()


async def test_more_slots_let_more_in_at_once() -> None:
    gate = Gate(1)
    visits = [Visit(gate) for _ in range(4)]
    await settle()
    gate.resize(3)
    await settle()
    assert [visit.inside for visit in visits] == [True, True, True, False]
    for visit in visits:
        await visit.leave()


async def test_with_fewer_those_inside_stay() -> None:
    gate = Gate(3)
    visits = [Visit(gate) for _ in range(4)]
    await settle()
    gate.resize(1)
    await settle()
    assert [visit.inside for visit in visits] == [True, True, True, False]
    await visits[0].leave()
    await visits[1].leave()
    await settle()
    assert not visits[3].inside
    await visits[2].leave()
    await settle()
    assert visits[3].inside
    await visits[3].leave()


async def test_an_engine_without_slots_lets_nobody_in_until_it_has_some() -> None:
    gate = Gate(0)
    visit = Visit(gate)
    await settle()
    assert not visit.inside
    gate.resize(1)
    await settle()
    assert visit.inside
    await visit.leave()


async def test_without_slots_for_long_those_who_wait_go_elsewhere() -> None:
    now = 0.0
    gate = Gate(1, lambda: now)
    inside, waiting, leaving = Visit(gate), Visit(gate), Visit(gate)
    await settle()
    gate.resize(0)
    now += PATIENCE_S - 1
    gate.resize(0)
    await settle()
    assert not waiting.task.done()
    leaving.task.cancel()
    now += 1
    gate.resize(0)
    with pytest.raises(EngineAway):
        await waiting.task
    assert inside.inside
    await inside.leave()
    gate.resize(1)
    after = Visit(gate)
    await settle()
    assert after.inside
    await after.leave()


steps = st.lists(
    st.one_of(
        st.tuples(st.just("come"), st.sampled_from(PRIORITIES)),
        st.tuples(st.sampled_from(("leave", "give up")), st.integers(0, 20)),
        st.tuples(st.just("resize"), st.integers(0, 4)),
    ),
    max_size=40,
)


@given(steps)
def test_whatever_happens_no_slot_is_lost_and_none_is_used_twice(moves: list[tuple[str, int | Priority]]) -> None:
    async def play() -> None:
        gate, slots, visits = Gate(2), 2, list[Visit]()
        for move, value in moves:
            inside = [visit for visit in visits if visit.inside]
            if move == "come":
                visits.append(Visit(gate, value))  # type: ignore[arg-type]
            elif move == "resize":
                gate.resize(slots := int(value))
            elif move == "leave" and inside:
                await inside[int(value) % len(inside)].leave()
            elif move == "give up" and visits:
                await visits[int(value) % len(visits)].give_up()
            before = len(inside)
            await settle()
            visits = [visit for visit in visits if not visit.task.done()]
            now = sum(visit.inside for visit in visits)
            assert now <= max(slots, before)
            assert now >= min(slots, len(visits))
        for visit in visits:
            await visit.give_up()

    asyncio.run(play())
