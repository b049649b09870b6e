"""A batch as a whole: in time, within its cap, for the least cost; and why not, where that can't be."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import product
from math import floor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.routing.batch_plan import BatchPlan, Group, Room, Way, plan_batch

places = st.sampled_from(("cpu", "gpu", "cloud"))
money = st.sampled_from((0.0, 0.5, 1.0)) | st.floats(0.001, 2)


@st.composite
def ways_there(draw: st.DrawFn, tails: st.SearchStrategy[float] = st.just(0.0)) -> Way:  # noqa: B008
    cost = draw(money)
    billed = draw(st.sampled_from((0.0, cost)))
    takes_s = draw(st.sampled_from((1.0, 2.0, 5.0)) | st.floats(0.5, 20))
    return Way(draw(places), cost, billed, takes_s, tail_s=draw(tails))


def groups_with(ways: st.SearchStrategy[Way]) -> st.SearchStrategy[list[Group]]:
    return st.lists(
        st.builds(
            Group,
            st.sampled_from(("x", "y", "z")),
            st.integers(0, 4),
            st.lists(ways, max_size=3, unique_by=lambda way: way.place).map(tuple),
        ),
        max_size=3,
        unique_by=lambda group: group.name,
    )


#: Without tails: what is kept back for slow lines may make a plan dearer than it could be.
groups_of_lines = groups_with(ways_there())
groups_with_tails = groups_with(ways_there(st.sampled_from((0.0, 0.0, 1.0, 10.0))))
rooms_now = st.dictionaries(places, st.builds(Room, st.integers(0, 3), st.floats(0, 10)))
times = st.none() | st.floats(0.1, 40)
caps = st.none() | st.just(0.0) | st.floats(0.001, 5)


def ways_of(groups: list[Group]) -> dict[tuple[str, str], Way]:
    return {(group.name, way.place): way for group in groups for way in group.ways}


@given(groups_with_tails, rooms_now, times, caps)
@settings(max_examples=300, deadline=None)
def test_never_over_the_cap_nor_past_the_deadline_nor_where_it_may_not(
    groups: list[Group], rooms: dict[str, Room], left_s: float | None, cap_usd: float | None
) -> None:
    plan = plan_batch(groups, rooms, left_s, cap_usd)
    ways = ways_of(groups)
    assert all((share.group, share.place) in ways for share in plan.shares)
    assert all(rooms[share.place].slots for share in plan.shares)
    assert cap_usd is None or plan.billed_usd <= cap_usd + 1e-6
    assert left_s is None or plan.finish_s <= left_s * (1 + 1e-5)
    placed: dict[str, int] = {}
    for share in plan.shares:
        assert share.lines > 0
        placed[share.group] = placed.get(share.group, 0) + share.lines
    for group in groups:
        assert placed.get(group.name, 0) + plan.unplaced.get(group.name, 0) == group.lines
    assert (plan.shortfall is None) == (not plan.unplaced)


@given(groups_with_tails, rooms_now, times, caps)
@settings(max_examples=200, deadline=None)
def test_what_is_kept_back_costs_no_line_its_place(
    groups: list[Group], rooms: dict[str, Room], left_s: float | None, cap_usd: float | None
) -> None:
    bold = [replace(group, ways=tuple(replace(way, tail_s=0.0) for way in group.ways)) for group in groups]
    at_the_limit = plan_batch(bold, rooms, left_s, cap_usd, slack=0.0)
    assert plan_batch(groups, rooms, left_s, cap_usd).lines == at_the_limit.lines


def best_of_all(
    groups: list[Group], rooms: dict[str, Room], left_s: float | None, cap_usd: float | None
) -> tuple[int, float]:
    """Lines and cost of the best plan, of all that there are."""
    best = (0, 0.0)
    for chosen in product(*((None, *group.ways) for group in groups for _ in range(group.lines))):
        went = [way for way in chosen if way is not None]
        if any(not rooms.get(way.place, Room(0)).slots for way in went):
            continue
        if cap_usd is not None and sum(way.billed_usd for way in went) > cap_usd + 1e-9:
            continue
        if left_s is not None:
            slots: dict[str, float] = {}
            for way in went:
                each = floor(max(0.0, left_s - rooms[way.place].wait_s) / way.service_s * (1 + 1e-6))
                slots[way.place] = slots.get(way.place, 0.0) + (1 / each if each else float("inf"))
            if any(used > rooms[place].slots + 1e-6 for place, used in slots.items()):
                continue
        cost = sum(way.cost_usd for way in went)
        if len(went) > best[0] or (len(went) == best[0] and cost < best[1]):
            best = len(went), cost
    return best


@given(groups_of_lines.filter(lambda groups: sum(g.lines for g in groups) <= 5), rooms_now, times, caps)
@settings(max_examples=200, deadline=None)
def test_no_other_plan_is_better(
    groups: list[Group], rooms: dict[str, Room], left_s: float | None, cap_usd: float | None
) -> None:
    plan = plan_batch(groups, rooms, left_s, cap_usd, slack=0.0)
    lines, cost = best_of_all(groups, rooms, left_s, cap_usd)
    assert plan.lines == lines
    assert plan.cost_usd == pytest.approx(cost, abs=1e-5, rel=1e-5)


@given(groups_of_lines, rooms_now, times, caps)
@settings(max_examples=200, deadline=None)
def test_never_dearer_than_line_by_line(
    groups: list[Group], rooms: dict[str, Room], left_s: float | None, cap_usd: float | None
) -> None:
    """As the scheduler places jobs without a plan: each at the cheapest place that still has it done in time."""
    free = {name: [room.wait_s] * room.slots for name, room in rooms.items()}
    money = cap_usd
    placed, cost = 0, 0.0
    for group in groups:
        for _ in range(group.lines):
            for way in sorted(group.ways, key=lambda way: way.cost_usd):
                slots = free.get(way.place)
                if not slots or (money is not None and way.billed_usd > money):
                    continue
                slot = min(range(len(slots)), key=slots.__getitem__)
                if left_s is not None and slots[slot] + way.service_s > left_s:
                    continue
                slots[slot] += way.service_s
                money = None if money is None else money - way.billed_usd
                placed, cost = placed + 1, cost + way.cost_usd
                break
    plan = plan_batch(groups, rooms, left_s, cap_usd)
    if plan.lines == placed and len(groups) <= 1:
        assert plan.cost_usd <= cost + 1e-6
    if len(groups) <= 1:
        assert plan.lines >= placed


@given(groups_with_tails, rooms_now, times, caps, st.randoms())
@settings(deadline=None)
def test_the_order_doesnt_matter(
    groups: list[Group], rooms: dict[str, Room], left_s: float | None, cap_usd: float | None, chance: random.Random
) -> None:
    others = [Group(g.name, g.lines, tuple(chance.sample(g.ways, len(g.ways)))) for g in groups]
    chance.shuffle(others)
    turned = dict(chance.sample(list(rooms.items()), len(rooms)))
    assert plan_batch(others, turned, left_s, cap_usd) == plan_batch(groups, rooms, left_s, cap_usd)


@given(groups_of_lines, rooms_now, times, caps, st.builds(Room, st.integers(1, 3)), ways_there())
@settings(deadline=None, max_examples=60)
def test_one_more_place_makes_nothing_worse(
    groups: list[Group], rooms: dict[str, Room], left_s: float | None, cap_usd: float | None, room: Room, way: Way
) -> None:
    extra = Way("extra", way.cost_usd, way.billed_usd, way.service_s)
    more = [Group(g.name, g.lines, (*g.ways, extra)) for g in groups]
    before = plan_batch(groups, rooms, left_s, cap_usd, slack=0.0)
    after = plan_batch(more, {**rooms, "extra": room}, left_s, cap_usd, slack=0.0)
    assert after.lines >= before.lines
    if after.lines == before.lines:
        assert after.cost_usd <= before.cost_usd * (1 + 2e-3) + 1e-6


# What people meet.

_LOCAL = Way("local", 0.001, 0.0, 2.0)
_CLOUD = Way("cloud", 0.01, 0.01, 1.0)
_ROOMS = {"local": Room(4), "cloud": Room(50)}


def thousand(**ways: Way) -> list[Group]:
    return [Group("all", 1_000, tuple(ways.values()))]


def places_of(plan: BatchPlan) -> dict[str, int]:
    return {share.place: share.lines for share in plan.shares}


def test_with_time_everything_is_cheap() -> None:
    plan = plan_batch(thousand(local=_LOCAL, cloud=_CLOUD), _ROOMS, 3_600)
    assert places_of(plan) == {"local": 1_000}
    assert plan.cost_usd == pytest.approx(1.0)
    assert plan.finish_s == pytest.approx(500.0)


def test_as_few_as_the_deadline_needs_are_dear() -> None:
    plan = plan_batch(thousand(local=_LOCAL, cloud=_CLOUD), _ROOMS, 200, slack=0.0)
    # Four slots, a hundred lines each in that time.
    assert places_of(plan) == {"cloud": 600, "local": 400}
    assert plan.shortfall is None


def test_what_turns_out_slower_has_some_time_left() -> None:
    plan = plan_batch(thousand(local=_LOCAL, cloud=_CLOUD), _ROOMS, 200)
    assert plan.finish_s <= 180
    assert places_of(plan)["local"] == 360


def test_without_that_it_uses_all_there_is() -> None:
    plan = plan_batch(thousand(local=_LOCAL), _ROOMS, 500)
    assert places_of(plan) == {"local": 1_000}
    assert plan.finish_s == pytest.approx(500.0)


def test_of_equal_costs_the_soonest() -> None:
    other = Way("other", 0.001, 0.0, 2.0)
    plan = plan_batch(thousand(local=_LOCAL, other=other), {"local": Room(4), "other": Room(4)}, 3_600)
    assert plan.finish_s < 275  # 250 at best
    assert set(places_of(plan)) == {"local", "other"}


def test_what_waits_there_counts() -> None:
    plan = plan_batch(thousand(local=_LOCAL, cloud=_CLOUD), {**_ROOMS, "local": Room(4, 100.0)}, 200, slack=0.0)
    assert places_of(plan) == {"cloud": 800, "local": 200}


class TestShortfall:
    def test_more_money_or_more_time(self) -> None:
        plan = plan_batch(thousand(local=_LOCAL, cloud=_CLOUD), _ROOMS, 200, 1.0, slack=0.0)
        assert places_of(plan) == {"cloud": 100, "local": 400}
        assert plan.unplaced == {"all": 500}
        assert plan.shortfall is not None
        assert (plan.shortfall.reason, plan.shortfall.lines) == ("deadline_or_cap", 500)
        assert plan.shortfall.in_time_usd == pytest.approx(6.0)
        # A hundred for the dollar, nine hundred on four slots.
        assert plan.shortfall.within_cap_s == pytest.approx(450.0, rel=0.05)
        assert "in time all would cost $6.000000" in plan.shortfall.detail

    def test_more_time(self) -> None:
        plan = plan_batch(thousand(local=_LOCAL), _ROOMS, 100, 1.0)
        assert plan.shortfall is not None
        assert (plan.shortfall.reason, plan.shortfall.in_time_usd) == ("deadline", None)
        assert plan.shortfall.within_cap_s == pytest.approx(500.0, rel=0.05)

    def test_more_money(self) -> None:
        plan = plan_batch(thousand(cloud=_CLOUD), _ROOMS, 100, 1.0)
        assert plan.lines == 100
        assert plan.shortfall is not None
        assert (plan.shortfall.reason, plan.shortfall.within_cap_s) == ("cap", None)
        assert plan.shortfall.in_time_usd == pytest.approx(10.0)

    def test_both(self) -> None:
        plan = plan_batch(thousand(cloud=_CLOUD), {"cloud": Room(1)}, 100, 0.5)
        assert plan.shortfall is not None
        assert plan.shortfall.reason == "deadline_and_cap"

    def test_nobody_is_there(self) -> None:
        plan = plan_batch([Group("all", 7, (_LOCAL,)), Group("none", 2, ())], {"local": Room(0)}, 100)
        assert plan.shortfall is not None
        assert (plan.shortfall.reason, plan.shortfall.lines) == ("nowhere", 9)
        assert "nobody" in plan.shortfall.detail


def test_the_last_ones_begin_so_early_that_slow_ones_are_done() -> None:
    slow_at_times = Way("local", 0.001, 0.0, 2.0, tail_s=20.0)
    plan = plan_batch(thousand(local=slow_at_times, cloud=_CLOUD), _ROOMS, 200, slack=0.0)
    assert places_of(plan) == {"cloud": 640, "local": 360}


def test_only_those_hurry_that_have_to() -> None:
    """Without the reserve of those who may go anywhere the others get no place sooner."""
    home = Way("local", 0.001, 0.0, 2.0, tail_s=60.0)
    away = Way("cloud", 0.01, 0.01, 1.0, tail_s=60.0)
    bound, free = Group("bound", 300, (home,)), Group("free", 1_000, (home, away))
    plan = plan_batch([bound, free], _ROOMS, 200)
    lines = {(share.group, share.place): share.lines for share in plan.shares}
    assert lines == {("bound", "local"): 300, ("free", "cloud"): 1_000}
    # With their reserve 50 slots do 6,000 lines, and there is no need for more.
    crowd = plan_batch([bound, replace(free, lines=6_400)], _ROOMS, 200)
    lines = {(share.group, share.place): share.lines for share in crowd.shares}
    assert lines["bound", "local"] == 300
    assert crowd.unplaced == {}


def test_haste_is_as_little_as_it_takes() -> None:
    """Eight lines on four slots in 100 s: two each. With nothing kept back ten would do."""
    way = Way("local", 0.001, 0.0, 20.0, tail_s=60.0)
    plan = plan_batch([Group("all", 8, (way,))], {"local": Room(4), "cloud": Room(0)}, 100)
    assert plan.lines == 8
    cheap = Way("slow", 0.0001, 0.0, 99.0, tail_s=0.0)
    both = plan_batch([Group("all", 9, (cheap, way))], {"local": Room(4), "slow": Room(9)}, 100)
    # The cheaper place does a line each, but only if nothing at all is kept for what turns out slower.
    assert places_of(both) == {"local": 9}


def test_who_can_go_nowhere_else_goes_first_and_long_lines_before_short_ones() -> None:
    bound = Group("bound", 5, (_LOCAL,))
    short, long = (
        Group(name, 5, (replace(_LOCAL, service_s=s), _CLOUD)) for name, s in (("short", 1.0), ("zlong", 9.0))
    )
    plan = plan_batch([long, short, bound], _ROOMS, 3_600)
    assert [share.group for share in plan.shares] == ["bound", "zlong", "short"]


def test_a_guess_rules_nothing_out() -> None:
    """Of a place that nobody has measured some lines show whether it is as slow as is usual."""
    slow = Way("local", 0.001, 0.0, 100.0, sure=False)
    plan = plan_batch([Group("all", 1_000, (slow,))], {"local": Room(4)}, 50)
    assert places_of(plan) == {"local": 4}
    assert plan_batch([Group("all", 1_000, (Way("local", 0.001, 0.0, 100.0),))], {"local": Room(4)}, 50).lines == 0
