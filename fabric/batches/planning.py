"""Plans batches that have a deadline or a cap as a whole, and plans them again while they run.

A plan is made from what is known at that moment: what has been learned of places, what waits there, which breakers are
open, what the batch has cost. Only a few lines ahead of their start are handed over for the places that the plan has
for them (``Planner.due``), so that the next plan can still send the others elsewhere.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, fsum
from typing import Any

import orjson

from fabric.batches.cap import Purse, balance_of
from fabric.batches.planned_feeder import Due
from fabric.contracts.batch_options import BatchOptions
from fabric.contracts.budget import NANO
from fabric.contracts.catalog import Catalog
from fabric.contracts.job import JobSpec
from fabric.ledger import Ledger, batches, lines
from fabric.ledger.batches import Batch
from fabric.routing import World, policy_hash, world_of
from fabric.routing.batch_outlook import Ways, rooms_of, ways_of
from fabric.routing.batch_plan import BatchPlan, Group, Room, plan_batch
from fabric.store import Store, reads, transitions
from fabric.store.budgets import Balance

#: Between two plans of a batch. Shorter notices sooner what has changed, and costs reads of store and ledger.
EVERY_S = 2.0
#: And so many times as long as the last one took.
_RESTS = 20
#: Plans that there must be time for, where one that rests on guesses is tried out before the next.
_TRIES = 10
#: Work that is handed over ahead: more bridges longer pauses of the batch service, less can be planned otherwise.
_AHEAD_S = 10.0
#: A place is fed when this part of what it may have ahead is missing.
_REFILL = 0.25

#: Group and place -> lines.
Hands = Mapping[tuple[int, str], int]


@dataclass(slots=True)
class _Standing:
    """A batch, its newest plan, and what of that is still to be handed over."""

    groups: Mapping[int, JobSpec]
    ways: Mapping[int, Ways] = field(default_factory=dict)
    left: Counter[tuple[int, str]] = field(default_factory=Counter)  #: in the plan's order
    ahead: Mapping[str, int] = field(default_factory=dict)  #: place -> lines that it may have in hand
    broke: bool = False  #: what isn't placed can't be paid for
    again_s: float = 0.0
    shown: dict[str, Any] | None = None


class Planner:
    """Not for several threads."""

    def __init__(
        self,
        store: Store,
        ledger: Ledger,
        catalog: Catalog,
        *,
        window: int,
        every_s: float = EVERY_S,
        now_ms: Callable[[], int] = lambda: int(time.time() * 1000),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._window = window
        self._every_s = every_s
        self._now_ms = now_ms
        self._clock = clock
        self._known: dict[str, _Standing] = {}
        self._world = World()
        #: Place -> seconds in a slot that the plans of this look take there, together.
        self._taken_s: defaultdict[str, float] = defaultdict(float)
        self.adopt(catalog)

    def adopt(self, catalog: Catalog) -> None:
        """Every batch is planned again with it."""
        self._catalog = catalog
        self._hash = policy_hash(catalog)
        for standing in self._known.values():
            standing.again_s = 0.0

    def begin(self, planned: Sequence[Batch]) -> list[Batch]:
        """The batches to plan now, in order, if it is time for any: the one that ends first goes first, and what it
        takes of the places isn't there for the next.

        Raises:
            Unavailable: the store is away.
        """
        self._known = {batch.id: self._known[batch.id] for batch in planned if batch.id in self._known}
        now = self._clock()
        if not any(batch.id not in self._known or self._known[batch.id].again_s <= now for batch in planned):
            return []
        self._world = self._read_world()
        self._taken_s = defaultdict(float)
        return sorted(planned, key=lambda batch: (batch.expires_ms, batch.id))

    def plan(self, batch: Batch, hands: Hands) -> bool:
        """One of those that ``begin`` answered. ``False``: nothing was handed over by it.

        Raises:
            Unavailable: the ledger or the store is away.
        """
        begun = self._clock()
        if batch.id not in self._known:
            self._known[batch.id] = _Standing(self._groups(batch.id))
        standing = self._known[batch.id]
        self._plan(batch, standing, hands)
        standing.again_s = self._clock() + max(self._every_s, _RESTS * (self._clock() - begun))
        return False

    def due(self, batch: Batch, hands: Hands, most: int) -> list[Due]:
        """What to hand over now, ``most`` lines at most."""
        standing = self._known.get(batch.id)
        if standing is None:
            return []
        in_hand: Counter[str] = Counter()
        for (_, place), count in hands.items():
            in_hand[place] += count
        due = [
            Due(number, "", most)
            for number, ways in standing.ways.items()
            if ways.ended or (standing.broke and not in_hand)
        ]
        for (number, place), left in standing.left.items():  # in the plan's order
            ahead = standing.ahead.get(place, 0)
            room = min(ahead - in_hand[place], most)
            if left > 0 and (room >= left or room >= max(1, ahead * _REFILL)):
                count = min(left, room)
                due.append(Due(number, place, count))
                in_hand[place] += count
                most -= count
        return due

    def handed_over(self, batch: Batch, due: Due, count: int) -> None:
        if (standing := self._known.get(batch.id)) is not None and due.place:
            standing.left[due.group_no, due.place] -= count

    def purse(self, batch: Batch, hands: Hands) -> Purse | None:
        """Of a batch with a cap, as it is now."""
        cap_usd = BatchOptions.load(batch.options).max_cost_usd
        if cap_usd is None:
            return None
        balance = balance_of(self._store, self._ledger, batch)
        last = not any(hands.values()) and not balance.reserved
        return Purse(batch.id, cap_usd, balance, self._catalog, last=last)

    def _groups(self, batch_id: str) -> dict[int, JobSpec]:
        return {number: JobSpec.load(spec) for number, spec in self._ledger.read(lines.groups, batch_id).items()}

    def _read_world(self) -> World:
        room, experience = self._store(transitions.room()), self._store(reads.experience())
        return world_of(
            room.workers,
            room.busy,
            self._catalog,
            experience=experience,
            now_ms=self._now_ms(),
            breakers=room.breakers,
            filled=room.filled,
        )

    def _plan(self, batch: Batch, standing: _Standing, hands: Hands) -> None:
        world = self._world
        to_come = self._ledger.read(lines.unplaced, batch.id)
        if unknown := to_come.keys() - standing.groups.keys():
            # Read under another catalogue, before a crash: as the first group, and each checked by itself.
            some = next(iter(standing.groups.values()), None)
            standing.groups = {**standing.groups, **(dict.fromkeys(unknown, some) if some else {})}
        specs = {
            number: replace(spec, deadline_ms=batch.expires_ms)
            for number, spec in standing.groups.items()
            if to_come.get(number) or _any(hands, number)
        }
        standing.ways = {number: ways_of(spec, self._catalog, self._hash, world) for number, spec in specs.items()}
        ways = {(number, way.place): way for number, of in standing.ways.items() for way in of.ways}
        own: Counter[str] = Counter()
        busy_s = self._taken_s.copy()
        in_hand_usd: defaultdict[str, float] = defaultdict(float)  #: place -> what is expected of lines that are there
        capped_usd = 0.0
        for (number, place), count in hands.items():
            own[place] += count
            if way := ways.get((number, place)):
                busy_s[place] += count * way.service_s
                in_hand_usd[place] += count * way.cost_usd
                capped_usd += count * way.billed_usd
        rooms = rooms_of(
            (self._catalog.by_deployment[place] for place in sorted({place for _, place in ways})),
            *(batch.endpoint, world, own, busy_s),
            window=self._window,
        )
        left_s = max(0.0, (batch.expires_ms - world.now_ms) / 1000)
        options = BatchOptions.load(batch.options)
        balance, cap_left = None, None
        if options.max_cost_usd is not None:
            balance = balance_of(self._store, self._ledger, batch)
            cap_left = options.max_cost_usd - balance.spent / NANO - capped_usd
        groups = [
            Group(str(number), to_come[number], standing.ways[number].ways)
            for number in specs
            if to_come.get(number) and not standing.ways[number].ended
        ]
        plan = plan_batch(groups, rooms, left_s, cap_left)
        for share in plan.shares:
            self._taken_s[share.place] += share.busy_s
        standing.left = Counter({(int(share.group), share.place): share.lines for share in plan.shares})
        guessed = any(not ways[int(share.group), share.place].sure for share in plan.shares)
        if guessed and left_s > _TRIES * self._every_s:
            self._try_out(standing.left, rooms)
        standing.ahead = {place: self._ahead(place, plan, world) for place in rooms}
        standing.broke = not plan.lines and plan.shortfall is not None and "cap" in plan.shortfall.reason
        self._show(batch, standing, _places(plan, own, in_hand_usd), plan, balance)

    def _try_out(self, left: Counter[tuple[int, str]], rooms: Mapping[str, Room]) -> None:
        """Of a plan that rests on guesses no more is handed over before the next one than shows what they are worth: as
        many lines as each place has slots."""
        tries = {place: room.slots for place, room in rooms.items()}
        for number, place in left:
            if not self._catalog.by_deployment[place].waits:
                left[number, place] = min(left[number, place], tries[place])
                tries[place] -= left[number, place]

    def _ahead(self, place: str, plan: BatchPlan, world: World) -> int:
        """Lines that may be in the store for it: its workers' hands full, or what is done there in some seconds."""
        state = world.of(place)
        if self._catalog.by_deployment[place].waits:
            return min(self._window, state.slots)
        shares = [share for share in plan.shares if share.place == place]
        busy_s, count = sum(share.busy_s for share in shares), sum(share.lines for share in shares)
        rate = state.slots * count / busy_s if busy_s > 0 else float(self._window)
        return max(state.capacity, min(self._window, ceil(rate * _AHEAD_S)))

    def _show(
        self,
        batch: Batch,
        standing: _Standing,
        places: list[dict[str, Any]],
        plan: BatchPlan,
        balance: Balance | None,
    ) -> None:
        """Keeps the plan where ``GET /v1/batches/{id}`` finds it, if it says anything new."""
        short = plan.shortfall
        shown = {
            "state": "on_course" if short is None else "short",
            "places": places,
            "expected_cost_usd": fsum(place["expected_cost_usd"] for place in places),
            "spent_usd": None if balance is None else balance.spent / NANO,
            "reserved_usd": None if balance is None else balance.reserved / NANO,
            "groups": len(standing.groups),
            "shortfall": None
            if short is None
            else {
                "reason": short.reason,
                "lines": short.lines,
                "detail": short.detail,
                "in_time_usd": short.in_time_usd,
                "within_cap_s": short.within_cap_s,
            },
            "policy_hash": self._hash,
        }
        if shown != standing.shown:
            standing.shown = shown
            now_s = self._world.now_ms / 1000
            when = {"planned_at": int(now_s), "finish_at": ceil(now_s + plan.finish_s)}
            self._ledger.write(batches.keep_plan, batch.id, orjson.dumps({**when, **shown}))


def _places(plan: BatchPlan, own: Mapping[str, int], own_usd: Mapping[str, float]) -> list[dict[str, Any]]:
    """What is to come and what is there, by place. US dollars for both together."""
    lines_to_come: Counter[str] = Counter()
    cost_usd = defaultdict(float, own_usd)
    for share in plan.shares:
        lines_to_come[share.place] += share.lines
        cost_usd[share.place] += share.cost_usd
    return [
        {
            "deployment": place,
            "lines": lines_to_come[place],
            "in_hand": own.get(place, 0),
            "expected_cost_usd": cost_usd[place],
        }
        for place in sorted(lines_to_come.keys() | own.keys() - {""})
    ]


def _any(hands: Hands, number: int) -> bool:
    return any(group == number and count for (group, _), count in hands.items())
