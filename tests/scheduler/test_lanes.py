"""Which lanes are taken from: never more than there is room for, and nobody starves."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.contracts.catalog import Catalog
from fabric.contracts.decision import Decision, Scored
from fabric.contracts.job import DUE_MS, PRIORITIES, JobSpec, Priority
from fabric.routing import DeploymentState, World
from fabric.store.transitions import Lane, side_lane
from scheduler.fair_share import FairShare
from scheduler.lanes import ROUND, bands, places_of, share_out, waiting_lane

NAMES = "abc"
CATALOG = Catalog.model_validate(
    {"models": [{"name": "m", "deployments": [{"name": n, "engine": "mock", "tier": "cpu"} for n in NAMES]}]}
)
#: Seconds of the clock when the class counts, and when the wait does.
BY_CLASS_MS, BY_WAIT_MS = 1_000, 8_000


def spec(priority: Priority = "interactive", tenant: str = "t", model: str = "m") -> JobSpec:
    return JobSpec("job_1", "/v1/chat/completions", model, priority=priority, tenant=tenant)


def lane(priority: Priority = "interactive", length: int = 1, due_ms: int = 0, places: str = "", **fields: Any) -> Lane:
    job = spec(priority, **fields)
    name = side_lane(job, places) if places else job.lane
    return Lane(name, priority, job.tenant, job.model, length, due_ms, places)


def state(slots: int = 8, busy: int = 0, workers: int = 1) -> DeploymentState:
    return DeploymentState(workers, slots, 2 * slots, busy)


def take(lanes: Sequence[Lane], *, now_ms: int = BY_CLASS_MS, rules: str = "r", **world: DeploymentState) -> list[int]:
    """How many of each lane."""
    takes = dict(share_out(lanes, World(world), CATALOG, rules, now_ms, FairShare()))
    return [takes.get(waiting.name, 0) for waiting in lanes]


def order(lanes: Sequence[Lane], now_ms: int) -> list[Lane]:
    return list(chain.from_iterable(bands(lanes, now_ms)))


class TestOrder:
    def test_by_class_then_by_due_time(self) -> None:
        lanes = [
            lane("batch", due_ms=1),
            lane("standard", due_ms=2),
            lane("interactive", tenant="late", due_ms=9),
            lane("interactive", due_ms=3),
        ]
        assert order(lanes, BY_CLASS_MS) == lanes[::-1]

    def test_one_turn_in_eight_belongs_to_whoever_has_waited_longest(self) -> None:
        old_batch = lane("batch", due_ms=DUE_MS["batch"])
        newer = lane("interactive", due_ms=DUE_MS["interactive"] + 1)
        turns = [order([newer, old_batch], second * 1_000)[0].priority for second in range(16)]
        assert turns == (["batch"] + ["interactive"] * 7) * 2

    @given(st.integers(0, 10**13))
    def test_the_order_of_the_lanes_does_not_matter(self, now_ms: int) -> None:
        lanes = [lane(p, due_ms=due, tenant=t) for p in PRIORITIES for due in (1, 2) for t in "ab"]
        assert order(lanes, now_ms) == order(lanes[::-1], now_ms)

    def test_under_twice_the_work_that_there_is_room_for_every_class_goes_on(self) -> None:
        """Two interactive jobs come a second and one job runs; a batch and a standard job were there first."""
        accepted: dict[Priority, list[int]] = {"interactive": [], "standard": [0], "batch": [0]}
        served: list[Priority] = []
        for now in range(0, 60_000, 1_000):
            accepted["interactive"] += [now, now]
            lanes = [lane(p, len(jobs), jobs[0] + DUE_MS[p]) for p, jobs in accepted.items() if jobs]
            first = order(lanes, now)[0].priority
            accepted[first].pop(0)
            served.append(first)
        assert {"standard", "batch"} <= set(served[:30])
        assert served.count("interactive") == 58


class TestShareOut:
    def test_what_there_is_room_for(self) -> None:
        assert take([lane(length=100)], a=state(slots=8, busy=10)) == [8 + 8 - 2]

    def test_interactive_jobs_may_overbook_by_one_set_of_slots(self) -> None:
        assert take([lane("standard", 100)], a=state(slots=8)) == [16]
        assert take([lane("interactive", 100)], a=state(slots=8)) == [24]

    def test_no_more_than_there_are(self) -> None:
        assert take([lane(length=3)], a=state(slots=8)) == [3]

    def test_nothing_without_workers(self) -> None:
        assert share_out([lane(length=3)], World(), CATALOG, "r", 0, FairShare()) == []

    def test_the_first_lane_comes_first(self) -> None:
        assert take([lane("standard", 100), lane("interactive", 20)], a=state(slots=8)) == [0, 20]

    def test_room_is_counted_once(self) -> None:
        lanes = [lane(length=20), lane("standard", 20)]
        assert take(lanes, a=state(slots=8), b=state(slots=4)) == [20, 8]

    def test_a_batch_is_topped_up_in_chunks(self) -> None:
        assert take([lane("batch", 100)], a=state(slots=40, busy=71)) == [0]
        assert take([lane("batch", 100)], a=state(slots=40, busy=70)) == [10]
        assert take([lane("batch", 9)], a=state(slots=40, busy=71)) == [9], "unless that is all"

    def test_a_batch_on_one_slot_still_moves(self) -> None:
        assert take([lane("batch", 100)], a=state(slots=1, busy=1)) == [1]

    def test_jobs_of_an_unknown_model_are_taken_to_be_refused(self) -> None:
        assert take([lane(model="gone", length=1_000)]) == [64]

    def test_a_side_lane_waits_for_its_own_places(self) -> None:
        waiting = lane(length=5, places="r:a,b")
        assert take([waiting], c=state()) == [0]
        assert take([waiting], b=state(slots=1)) == [3]

    def test_it_holds_up_nobody_else(self) -> None:
        assert take([lane(length=5, places="r:a"), lane(length=5, due_ms=9)], c=state()) == [0, 5]

    def test_a_side_lane_of_another_catalogue_is_looked_through(self) -> None:
        assert take([lane(length=500, places="older:a")], c=state(slots=1)) == [64]


states = st.builds(
    DeploymentState,
    workers=st.integers(1, 5),
    slots=st.integers(0, 40),
    capacity=st.integers(0, 80),
    busy=st.integers(0, 100),
)
worlds = st.builds(World, st.dictionaries(st.sampled_from(NAMES), states))
lanes = st.lists(
    st.builds(
        lane,
        st.sampled_from(PRIORITIES),
        length=st.integers(1, 700),
        due_ms=st.integers(0, 2 * DUE_MS["batch"]),
        tenant=st.sampled_from("xyz"),
        model=st.sampled_from(("m", "m", "m", "unknown")),
        places=st.sampled_from(("", "", "r:a", "r:b,c", "r:gone", "older:a,b")),
    ),
    max_size=10,
    unique_by=lambda found: found.name,
)
moments = st.integers(0, 10**13)


class TestWhatAlwaysHolds:
    @given(lanes, worlds, moments)
    def test_never_more_than_the_places_have_room_for(self, lanes: list[Lane], world: World, now_ms: int) -> None:
        takes = dict(share_out(lanes, world, CATALOG, "r", now_ms, FairShare()))
        wanted = {found.name: places_of(found, CATALOG, "r") for found in lanes}
        for places in chain.from_iterable(combinations(NAMES, size) for size in range(len(NAMES) + 1)):
            inside = [
                found
                for found in lanes
                if (names := wanted[found.name]) is not None and {d.name for d in names} <= set(places)
            ]
            for interactive in (True, False):
                counted = sum(takes.get(f.name, 0) for f in inside if interactive or f.priority != "interactive")
                assert counted <= sum(world.of(name).free(interactive=interactive) for name in places)

    @given(lanes, worlds, moments)
    def test_each_lane_once_and_no_more_than_it_has(self, lanes: list[Lane], world: World, now_ms: int) -> None:
        takes = share_out(lanes, world, CATALOG, "r", now_ms, FairShare())
        lengths = {found.name: found.length for found in lanes}
        assert len({name for name, _ in takes}) == len(takes)
        assert all(0 < count <= lengths[name] for name, count in takes)
        assert sum(count for _, count in takes) <= ROUND

    @given(lanes, worlds, moments)
    def test_while_there_is_room_somebody_gets_it(self, lanes: list[Lane], world: World, now_ms: int) -> None:
        takes = share_out(lanes, world, CATALOG, "r", now_ms, FairShare())
        could = [
            found
            for found in lanes
            for deployment in places_of(found, CATALOG, "r") or ()
            if world.of(deployment.name).free(interactive=found.priority == "interactive")
            >= (1 if found.priority != "batch" else min(found.length, 64))
        ]
        assert bool(takes) >= bool(could)


class TestPlaces:
    def decision(self, *names: str) -> Decision:
        return Decision("p", "r", tuple(Scored(name, "cpu", 0, 0) for name in names), ())

    def test_a_job_that_may_run_everywhere_waits_in_the_main_lane(self) -> None:
        assert waiting_lane(spec(), self.decision("c", "b", "a"), CATALOG, "r") == spec().lane

    @pytest.mark.parametrize("names", [("a",), ("c", "a")])
    def test_one_that_may_not_waits_where_its_places_are_named(self, names: tuple[str, ...]) -> None:
        name = waiting_lane(spec(), self.decision(*names), CATALOG, "r")
        _, tenant, rest = name.split("|")
        model, _, places = rest.partition(" ")
        found = places_of(Lane(name, "interactive", tenant, model, 1, 0, places), CATALOG, "r")
        assert found is not None
        assert {deployment.name for deployment in found} == set(names)
