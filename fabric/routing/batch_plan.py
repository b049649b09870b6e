"""A batch as a whole: how many of its lines go where, so that all are done in time and within the cap, for least cost.

Pure. What is known of the lines stands in groups of lines that are alike; ``fabric.batches.planning`` makes them, and
``fabric.routing.assignment`` solves the program in them. A place's slot does ``floor(time / seconds a line)`` lines of
a group, so a place has room for that many times its slots; with several groups at one place each takes its part of
the slots. Nothing here looks at a single line: where it really goes is decided when it is about to run, by all the
constraints that hold for every other job.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import floor, fsum, inf
from typing import Literal

from fabric.routing.assignment import Assignment, Kind, Option, assign

Reason = Literal["nowhere", "deadline", "cap", "deadline_or_cap", "deadline_and_cap"]

#: The part of the time that is kept for what turns out slower than predicted; used where nothing less does.
SLACK = 0.1
#: How exactly the soonest end is looked for: steps of halving the time between two bounds.
_HALVINGS = 8
_NEVER_S = 1e9
#: How often more groups are hurried because others took their room.
_WIDENINGS = 3
#: How exactly the least haste is looked for: steps of halving.
_HASTES = 3
_NEAR_THE_END = 0.9
#: Costs that differ by less, in parts of themselves, are the same.
_SAME = 1e-6


@dataclass(frozen=True, slots=True)
class Way:
    """One line at ``place``. ``billed_usd``: the part of its cost that counts against a cap (hours of the operator's
    own machines don't). ``service_s``: seconds in a slot. ``sure``: that is measured; a guess rules nothing out.
    ``tail_s``: how much longer the slow ones take: the last ones must begin so much earlier."""

    place: str
    cost_usd: float
    billed_usd: float
    service_s: float
    sure: bool = True
    tail_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Group:
    """Lines that are alike: where they may run, and what each takes there."""

    name: str
    lines: int
    ways: tuple[Way, ...]


@dataclass(frozen=True, slots=True)
class Room:
    """``slots``: lines at once. ``wait_s``: until the place is done with what it has."""

    slots: int
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Share:
    """So many lines of a group at a place. US dollars, for all of them."""

    group: str
    place: str
    lines: int
    cost_usd: float
    billed_usd: float
    busy_s: float  #: of the place's slots together


@dataclass(frozen=True, slots=True)
class Shortfall:
    """Why some lines have no place in the plan.

    ``nowhere``: nobody is there to run them. ``deadline``: more time would do, ``cap``: more money,
    ``deadline_or_cap``: one of the two, ``deadline_and_cap``: only both. ``in_time_usd``: the least that would have to
    be paid for all lines in time. ``within_cap_s``: the soonest end of all lines within the cap. ``None``: there is no
    such thing.
    """

    reason: Reason
    lines: int
    in_time_usd: float | None = None
    within_cap_s: float | None = None

    @property
    def detail(self) -> str:
        lines = f"{self.lines:,} lines"
        if self.reason == "nowhere":
            return f"for {lines} nobody is there to run them"
        in_time = "" if self.in_time_usd is None else f"; in time all would cost ${self.in_time_usd:.6f}"
        within = "" if self.within_cap_s is None else f"; within the cap all would take {self.within_cap_s:.0f} s"
        what = {
            "deadline": "too little time",
            "cap": "too little money",
            "deadline_or_cap": "too little time for what they may cost",
            "deadline_and_cap": "too little time, and too little money",
        }[self.reason]
        return f"{what} for {lines}{in_time}{within}"


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """``shares``: in the order in which they should be handed over, where not all have room at once.
    ``finish_s``: when the last of the placed lines is done, from now. ``bound_usd``: nothing that places as many
    lines costs less."""

    shares: tuple[Share, ...] = ()
    unplaced: Mapping[str, int] = field(default_factory=dict)
    finish_s: float = 0.0
    bound_usd: float = 0.0
    shortfall: Shortfall | None = None

    @property
    def cost_usd(self) -> float:
        return fsum(share.cost_usd for share in self.shares)

    @property
    def billed_usd(self) -> float:
        return fsum(share.billed_usd for share in self.shares)

    @property
    def lines(self) -> int:
        return sum(share.lines for share in self.shares)


def plan_batch(
    groups: Sequence[Group],
    rooms: Mapping[str, Room],
    left_s: float | None = None,
    cap_usd: float | None = None,
    *,
    slack: float = SLACK,
) -> BatchPlan:
    """As many lines as can be, for the least cost; of equal costs about the soonest end.

    ``rooms``: the places at which somebody works. ``left_s``: until the deadline; ``cap_usd``: what all lines together
    may still cost. The answer doesn't depend on the order of what comes in.
    """
    window = inf if left_s is None else left_s
    problem = _Problem(groups, rooms, cap_usd, 0.0 if left_s is None else left_s * slack)
    calm = window * (1 - slack)
    found = problem.within(calm)
    if found.placed < problem.total and window < inf:
        found = problem.hurried(found, calm)
    soonest = problem.sooner(found, calm)
    return problem.plan(soonest, window)


class _Problem:
    """``reserve_s``: what of the time is kept back. Hurried groups use it, and wait for no slow lines."""

    def __init__(
        self, groups: Sequence[Group], rooms: Mapping[str, Room], cap_usd: float | None, reserve_s: float = 0.0
    ) -> None:
        self._groups = {group.name: group for group in groups if group.lines > 0}
        self._rooms = {name: room for name, room in rooms.items() if room.slots > 0}
        self._cap = cap_usd
        self.total = sum(group.lines for group in self._groups.values())
        self._reserve_s = reserve_s
        self._hurried: frozenset[str] = frozenset()
        self._haste = 1.0  #: of the hurried groups, from 0: none

    def hurried(self, found: Assignment, window_s: float) -> Assignment:
        """More lines than ``found`` has, by hurrying as few groups as little as that takes: those that had no place for
        all their lines and those that have no other places than these, and all only where that isn't enough."""
        for _ in range(_WIDENINGS):
            open_: set[str] = set()
            for name, lines in self._unplaced(found).items():
                if lines:
                    open_ |= self._places(name)
            short = frozenset(name for name in self._groups if self._places(name) <= open_)
            if short <= self._hurried:
                break
            found = self._with(self._hurried | short, found, window_s)
        if found.placed < self.total:
            found = self._with(frozenset(self._groups), found, window_s)
        if not self._hurried:
            return found
        little, much = 0.0, 1.0
        for _ in range(_HASTES):
            self._haste = (little + much) / 2
            tried = self.within(window_s)
            if tried.placed >= found.placed:
                found, much = tried, self._haste
            else:
                little = self._haste
        self._haste = much
        return found

    def _with(self, groups: frozenset[str], found: Assignment, window_s: float) -> Assignment:
        """Those hurried, where it helps."""
        before, self._hurried = self._hurried, groups
        tried = self.within(window_s)
        if tried.placed > found.placed:
            return tried
        self._hurried = before
        return found

    def within(self, window_s: float, *, capped: bool = True, least_billed: bool = False) -> Assignment:
        """``least_billed``: what counts against a cap is to be least, rather than the cost."""
        kinds = [
            Kind(
                group.name,
                group.lines,
                tuple(
                    Option(
                        way.place,
                        way.billed_usd if least_billed else way.cost_usd,
                        0.0 if window_s == inf else 1 / each,
                        way.billed_usd,
                    )
                    for way in group.ways
                    if way.place in self._rooms
                    and (each := self._each(way, window_s, self._haste if group.name in self._hurried else 0.0)) > 0
                ),
            )
            for group in self._groups.values()
        ]
        slots = {} if window_s == inf else {name: float(room.slots) for name, room in self._rooms.items()}
        return assign(kinds, slots, None if self._cap is None or not capped else max(0.0, self._cap))

    def sooner(self, found: Assignment, window_s: float) -> Assignment:
        """As many lines for as little money, by taking time away as long as that goes, to a tenth of it."""
        late, best = min(window_s, self._finish_s(found)), found
        early = 0.0
        # Most plans need all their time: the first look is near its end.
        for part in (_NEAR_THE_END, *[0.5] * (_HALVINGS - 1)):
            if early > _NEAR_THE_END * late:
                break
            half = early + part * (late - early)
            tried = self.within(half)
            if tried.placed >= found.placed and tried.cost <= found.cost * (1 + _SAME):
                best, late = tried, min(half, self._finish_s(tried))
            else:
                early = half
        return best

    def plan(self, found: Assignment, window_s: float) -> BatchPlan:
        shares = []
        for (name, place), lines in sorted(found.lines.items(), key=self._turn):
            way = self._way(name, place)
            amounts = (lines * way.cost_usd, lines * way.billed_usd, lines * way.service_s)
            shares.append(Share(name, place, lines, *amounts))
        unplaced = {name: lines for name, lines in self._unplaced(found).items() if lines}
        shortfall = self._shortfall(sum(unplaced.values()), window_s) if unplaced else None
        return BatchPlan(tuple(shares), unplaced, self._finish_s(found), found.bound, shortfall)

    def _turn(self, item: tuple[tuple[str, str], int]) -> tuple[int, float, str, str]:
        """Who can't go elsewhere later goes first, and the long before the short: these fill what is left."""
        (name, place), _ = item
        return len(self._places(name)), -self._way(name, place).service_s, name, place

    def _places(self, group: str) -> set[str]:
        return {way.place for way in self._groups[group].ways if way.place in self._rooms}

    def _unplaced(self, found: Assignment) -> dict[str, int]:
        left = {name: group.lines for name, group in sorted(self._groups.items())}
        for (name, _), lines in found.lines.items():
            left[name] -= lines
        return left

    def _each(self, way: Way, window_s: float, haste: float) -> float:
        """Lines that one slot of the place does in that time."""
        if window_s == inf:
            return 1.0
        time_s = window_s + haste * self._reserve_s - self._rooms[way.place].wait_s
        if time_s <= 0:
            return 0.0
        if way.service_s <= 0:
            return inf
        each = floor(max(0.0, time_s - (1 - haste) * way.tail_s) / way.service_s * (1 + _SAME))
        return max(1, each) if not way.sure else each

    def _finish_s(self, found: Assignment) -> float:
        longest: dict[str, float] = {}
        busy: dict[str, float] = {}
        for (name, place), lines in found.lines.items():
            way = self._way(name, place)
            longest[place] = max(longest.get(place, 0.0), way.service_s)
            busy[place] = busy.get(place, 0.0) + lines * way.service_s
        rooms = self._rooms
        return max(
            (rooms[place].wait_s + max(longest[place], busy[place] / rooms[place].slots) for place in busy), default=0.0
        )

    def _way(self, group: str, place: str) -> Way:
        return next(way for way in self._groups[group].ways if way.place == place)

    def _shortfall(self, lines: int, window_s: float) -> Shortfall:
        # What is said is that even so there is too little: with nothing kept back.
        self._hurried, self._haste, self._reserve_s = frozenset(self._groups), 1.0, 0.0
        anywhere = self.within(inf, capped=False).placed
        if anywhere < self.total:
            return Shortfall("nowhere", self.total - anywhere)
        richer, longer = self.within(window_s, capped=False, least_billed=True), self.within(inf)
        enough_time, enough_money = richer.placed == self.total, longer.placed == self.total
        in_time_usd = richer.cost if enough_time and self._cap is not None else None
        within_cap_s = self._soonest(window_s) if enough_money else None
        if not enough_money and not enough_time:
            return Shortfall("deadline_and_cap", lines)
        if enough_money and enough_time:
            return Shortfall("deadline_or_cap", lines, in_time_usd, within_cap_s)
        return Shortfall("cap" if enough_time else "deadline", lines, in_time_usd, within_cap_s)

    def _soonest(self, late_s: float) -> float | None:
        """The time in which all lines can be done within the cap; they can't in ``late_s``. ``None``: not in years."""
        early, late = late_s, max(late_s, 1.0)
        while self.within(late).placed < self.total:
            early, late = late, 2 * late
            if late > _NEVER_S:
                return None
        for _ in range(_HALVINGS):
            half = (early + late) / 2
            early, late = (early, half) if self.within(half).placed == self.total else (half, late)
        return late
