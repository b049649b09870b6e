"""The integer program behind a batch's plan: against every possible assignment, and by its own bound."""

from __future__ import annotations

import random
from itertools import product

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fabric.routing import assignment
from fabric.routing.assignment import Assignment, Kind, Option, assign

places = st.sampled_from("abc")
parts = st.sampled_from((0.0, 0.1, 0.25, 0.5, 1.0)) | st.floats(0.001, 1)
options = st.lists(
    st.builds(Option, places, st.sampled_from((0.0, 1.0, 2.0)) | st.floats(0.001, 3), parts, parts),
    max_size=3,
    unique_by=lambda option: option.place,
).map(tuple)
kinds_of_work = st.lists(
    st.builds(Kind, st.sampled_from(("x", "y", "z")), st.integers(0, 3), options),
    max_size=3,
    unique_by=lambda kind: kind.name,
)
rooms_of_places = st.dictionaries(places, st.sampled_from((0.0, 1.0, 2.0)) | st.floats(0.001, 3))
purses = st.none() | st.sampled_from((0.0, 1.0)) | st.floats(0.001, 4)


def taken(found: Assignment, kinds: list[Kind]) -> tuple[dict[str, float], float, dict[str, int], float]:
    """Room taken by place, what was taken of the purse, lines by kind, and the cost."""
    by_name = {kind.name: {option.place: option for option in kind.options} for kind in kinds}
    room: dict[str, float] = {}
    lines: dict[str, int] = {}
    purse = cost = 0.0
    for (name, place), count in found.lines.items():
        option = by_name[name][place]
        room[place] = room.get(place, 0.0) + count * option.room
        lines[name] = lines.get(name, 0) + count
        purse += count * option.purse
        cost += count * option.cost
    return room, purse, lines, cost


def is_sound(found: Assignment, kinds: list[Kind], rooms: dict[str, float], purse: float | None) -> bool:
    room, spent, lines, cost = taken(found, kinds)
    by_name = {kind.name: kind for kind in kinds}
    return (
        all(count > 0 for count in found.lines.values())
        and all(count <= by_name[name].lines for name, count in lines.items())
        and all(used <= rooms[place] + 1e-6 for place, used in room.items() if place in rooms)
        and (purse is None or spent <= purse + 1e-6)
        and found.placed == sum(lines.values())
        and found.cost == pytest.approx(cost, abs=1e-9)
        and found.bound <= found.cost
    )


def best_of_all(kinds: list[Kind], rooms: dict[str, float], purse: float | None) -> tuple[int, float]:
    """Lines and cost of the best assignment, found by looking at every one."""
    choices = [(None, *kind.options) for kind in kinds for _ in range(kind.lines)]
    best = (0, 0.0)
    for chosen in product(*choices):
        went = [option for option in chosen if option is not None]
        room: dict[str, float] = {}
        for option in went:
            room[option.place] = room.get(option.place, 0.0) + option.room
        if any(used > rooms[place] + 1e-9 for place, used in room.items() if place in rooms):
            continue
        if purse is not None and sum(option.purse for option in went) > purse + 1e-9:
            continue
        cost = sum(option.cost for option in went)
        if len(went) > best[0] or (len(went) == best[0] and cost < best[1]):
            best = len(went), cost
    return best


def greedy(kinds: list[Kind], rooms: dict[str, float], purse: float | None) -> tuple[int, float]:
    """Each line at the cheapest place that still takes it, one after the other."""
    left, money, placed, cost = dict(rooms), purse, 0, 0.0
    for kind in kinds:
        for _ in range(kind.lines):
            for option in sorted(kind.options, key=lambda option: option.cost):
                fits = option.place not in left or option.room <= left[option.place] + 1e-9
                if fits and (money is None or option.purse <= money + 1e-9):
                    if option.place in left:
                        left[option.place] -= option.room
                    money = None if money is None else money - option.purse
                    placed, cost = placed + 1, cost + option.cost
                    break
    return placed, cost


@given(kinds_of_work, rooms_of_places, purses)
@settings(max_examples=300, deadline=None)
def test_nothing_better_exists(kinds: list[Kind], rooms: dict[str, float], purse: float | None) -> None:
    assume(sum(kind.lines for kind in kinds) <= 6)
    found = assign(kinds, rooms, purse)
    assert is_sound(found, kinds, rooms, purse)
    placed, cost = best_of_all(kinds, rooms, purse)
    assert found.placed == placed
    assert found.cost == pytest.approx(cost, abs=1e-6)
    assert found.optimal


@given(kinds_of_work, rooms_of_places, purses)
@settings(max_examples=200, deadline=None)
def test_the_search_is_sound_and_its_bound_holds(
    kinds: list[Kind], rooms: dict[str, float], purse: float | None
) -> None:
    """The way of large programs, on ones that are small enough to know the best."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(assignment, "_FEW_WAYS", -1)
        searched = assign(kinds, rooms, purse)
    best = assign(kinds, rooms, purse)
    assert is_sound(searched, kinds, rooms, purse)
    assert searched.placed <= best.placed
    if searched.placed == best.placed:
        assert searched.bound - 1e-6 <= best.cost <= searched.cost + 1e-6


@given(kinds_of_work, rooms_of_places, purses, st.randoms())
def test_the_order_doesnt_matter(
    kinds: list[Kind], rooms: dict[str, float], purse: float | None, shuffled: random.Random
) -> None:
    others = [Kind(k.name, k.lines, tuple(shuffled.sample(k.options, len(k.options)))) for k in kinds]
    shuffled.shuffle(others)
    turned = dict(shuffled.sample(list(rooms.items()), len(rooms)))
    assert assign(others, turned, purse) == assign(kinds, rooms, purse)


def large(seed: int, kinds: int = 40, places: int = 5, lines: int = 4_000) -> tuple[list[Kind], dict[str, float]]:
    """The dearer the quicker, and not quite room for all at the cheap ones."""
    chance = random.Random(seed)
    work = []
    for number in range(kinds):
        size = chance.uniform(1, 5)
        work.append(
            Kind(
                f"k{number:02}",
                lines // kinds,
                tuple(
                    Option(
                        f"p{place}",
                        size * (0.001 + 0.01 * place) * chance.uniform(0.8, 1.2),
                        size / 100 / (1 + place),
                        size * 0.01 * place,
                    )
                    for place in range(places)
                ),
            )
        )
    return work, {f"p{place}": lines * 3 / 100 / places / 2 for place in range(places - 1)}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [None, 1.2, 0.5])
def test_large_ones_are_within_a_thousandth_and_never_behind_one_by_one(seed: int, share: float | None) -> None:
    kinds, rooms = large(seed)
    purse = None if share is None else share * sum(k.lines * min(o.purse for o in k.options[2:]) for k in kinds)
    found = assign(kinds, rooms, purse)
    assert is_sound(found, kinds, rooms, purse)
    placed, cost = greedy(kinds, rooms, purse)
    assert found.placed >= placed
    if found.placed == placed:
        assert found.cost <= cost + 1e-9
    if share is None:
        assert found.placed == sum(kind.lines for kind in kinds)
        assert found.cost <= found.bound * 1.002


def test_a_chain_of_moves() -> None:
    """The only way to make room for z is to move x from a to b and y from b to c."""
    kinds = [
        Kind("x", 100, (Option("a", 1.0, 1.0), Option("b", 1.5, 1.0))),
        Kind("y", 100, (Option("b", 1.0, 1.0), Option("c", 3.0, 1.0))),
        Kind("z", 100, (Option("a", 1.0, 1.0),)),
    ]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(assignment, "_FEW_WAYS", -1)
        found = assign(kinds, {"a": 100.0, "b": 100.0, "c": 100.0})
    assert found.lines == {("x", "b"): 100, ("y", "c"): 100, ("z", "a"): 100}
    assert found.cost == pytest.approx(550.0)
    assert found.optimal
