"""The gate before an engine."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.contracts.errors import EngineAway
from fabric.contracts.job import PRIORITIES, Priority
from workers.slots import HELD_S, KEPT_S, PATIENCE_S, Gate, kept


class Visit:
    """Someone who goes through the gate and stays until told to leave."""

    def __init__(self, gate: Gate, priority: Priority = "standard") -> None:
        self.inside = False
        self.priority = priority
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


@pytest.mark.parametrize(("slots", "left"), [(0, 0), (1, 0), (2, 1), (4, 1), (8, 1), (9, 2), (512, 64)])
def test_slots_that_are_kept_for_people(slots: int, left: int) -> None:
    assert kept(slots) == left


class TestBesidePeople:
    async def test_a_batch_has_everything_while_nobody_asks(self) -> None:
        gate = Gate(4)
        visits = [Visit(gate, "batch") for _ in range(5)]
        await settle()
        assert [visit.inside for visit in visits] == [True] * 4 + [False]
        for visit in visits:
            await visit.give_up()

    async def test_it_leaves_a_slot_until_a_while_after_the_last_one(self) -> None:
        now = 0.0
        gate = Gate(4, lambda: now)
        batch = [Visit(gate, "batch") for _ in range(6)]
        await settle()
        person = Visit(gate, "interactive")
        await batch[0].leave()
        await settle()
        assert person.inside
        await batch[1].leave()
        await settle()
        assert [visit.inside for visit in batch[2:]] == [True, True, True, False], (
            "the person is in the slot that is kept"
        )
        await person.leave()
        await settle()
        assert not batch[5].inside
        gate.resize(4)
        again = Visit(gate, "interactive")
        await settle()
        assert again.inside, "at once"
        await again.leave()
        now += KEPT_S
        gate.resize(4)
        await settle()
        assert batch[5].inside
        for visit in batch[2:]:
            await visit.give_up()

    async def test_standard_jobs_do_not_wait_for_it(self) -> None:
        gate = Gate(2)
        await Visit(gate, "interactive").leave()
        visits = [Visit(gate, "standard"), Visit(gate, "standard")]
        await settle()
        assert [visit.inside for visit in visits] == [True, True]
        for visit in visits:
            await visit.give_up()


class TestWherePromptsBlock:
    async def test_a_batch_waits_until_a_stream_has_begun(self) -> None:
        now = 0.0
        gate = Gate(8, lambda: now, prompts_block=True)
        async with gate.slot("interactive", streams=True) as slot:
            batch = Visit(gate, "batch")
            await settle()
            assert not batch.inside
            slot.spoken()
            await settle()
            assert batch.inside
            slot.spoken()  # once is enough
        async with gate.slot("interactive", streams=True):
            late = Visit(gate, "batch")
            await settle()
            assert not late.inside
            now += HELD_S
            gate.resize(8)
            await settle()
            assert late.inside, "not for ever"
        await batch.leave()
        await late.leave()

    @pytest.mark.parametrize(("priority", "streams"), [("interactive", False), ("standard", True)])
    async def test_not_for_those_that_say_nothing_before_their_end(self, priority: Priority, streams: bool) -> None:
        gate = Gate(8, prompts_block=True)
        async with gate.slot(priority, streams=streams):
            batch = Visit(gate, "batch")
            await settle()
            assert batch.inside
        await batch.leave()

    async def test_a_stream_that_ends_without_a_word_lets_it_in(self) -> None:
        gate = Gate(8, prompts_block=True)
        async with gate.slot("interactive", streams=True):
            batch = Visit(gate, "batch")
            await settle()
        await settle()
        assert batch.inside
        await batch.leave()


async def test_whoever_has_waited_longest_is_one_in_eight() -> None:
    gate = Gate(1)
    last = Visit(gate)
    await settle()
    patient = Visit(gate, "batch")
    await settle()
    visits = [Visit(gate, "interactive") for _ in range(20)]
    entered = 0
    while not patient.inside:
        await last.leave()
        await settle()
        last = next(visit for visit in (patient, *visits) if visit.inside)
        entered += 1
    assert entered == 8
    for visit in (patient, *visits):
        await visit.give_up()


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
            batch = any(visit.priority == "batch" for visit in visits)
            assert now >= min(slots, len(visits)) - (kept(slots) if batch else 0)
        for visit in visits:
            await visit.give_up()

    asyncio.run(play())
