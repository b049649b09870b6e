"""What a batch costs that is planned as a whole, and what it costs when each line goes where its policy wants it.

In simulated time, and the same each time with the same seed. Decisions, forecasts, plans and prices are the fabric's
own; places work as workers do: each holds twice its slots, answers take as long as their tokens do there, more or less,
and one place becomes slower half way. Lines are made up, or those that a ledger has recorded.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from math import ceil, exp, log
from typing import Any

import click

from benchmarks.command import benchmark
from benchmarks.report import Budget, Report, Table
from fabric.contracts.catalog import Catalog, Deployment
from fabric.contracts.experience import LENGTH_BOUNDS, AnswerLength, Experience, Pace, survival
from fabric.contracts.job import Endpoint, JobSpec
from fabric.ledger import Ledger, usage
from fabric.pricing import machine_usd, token_usd
from fabric.routing import DeploymentState, World, decide, policy_hash
from fabric.routing.batch_outlook import rooms_of, ways_of
from fabric.routing.batch_plan import Group, plan_batch

CHAT: Endpoint = "/v1/chat/completions"
#: What may be said of each line where there is no plan: the default policy, those that look at money or time, and that
#: it waits for the operator's own machines, as a rule or a key can say.
LINE_BY_LINE: dict[str, dict[str, Any]] = {
    **{policy: {"policy": policy} for policy in ("local-first", "cheapest", "fastest", "weighted")},
    "own machines": {"allowed_tiers": ("cpu", "gpu")},
}
#: Parts of the time that the operator's own machines would take for all lines.
DEADLINES = {"ample": 1.5, "near": 0.6, "very near": 0.25}
_NOW_MS = 1_000_000_000
#: Looks at the backlog, and plans, in the time until the deadline.
_ROUNDS, _PLANS = 200, 20
_NOISE = 0.25
_SLOWER = 1.3
_RATIO = 1.25

#: Slots; seconds to the first token, for a token of the prompt, for one of the answer.
PLACES: dict[str, tuple[int, float, float, float]] = {
    "desk": (4, 0.2, 0.002, 0.05),
    "rack": (16, 0.1, 0.0004, 0.02),
    "cloud-small": (48, 0.5, 0.0001, 0.012),
    "cloud-large": (48, 0.6, 0.0001, 0.008),
}
CATALOG = Catalog.model_validate(
    {
        "models": [
            {
                "name": "m",
                "deployments": [
                    _own | {"engine": "mock", "context_window": 32_768}
                    for _own in (
                        {"name": "desk", "tier": "cpu", "price": {"machine_usd_per_hour": 0.03}},
                        {"name": "rack", "tier": "gpu", "price": {"machine_usd_per_hour": 0.6}},
                        {
                            "name": "cloud-small",
                            "tier": "cloud",
                            "price": {"input_per_million": 0.4, "output_per_million": 1.6, "version": "made up"},
                        },
                        {
                            "name": "cloud-large",
                            "tier": "cloud",
                            "price": {"input_per_million": 2.5, "output_per_million": 10.0, "version": "made up"},
                        },
                    )
                ],
            }
        ]
    }
)
_HASH = policy_hash(CATALOG)


@dataclass(frozen=True, slots=True)
class Line:
    """Tokens as they are, and ``most``: those that the answer may have."""

    prompt: int
    output: int
    most: int
    restricted: bool = False

    @property
    def alike(self) -> tuple[int, int, bool]:
        return ceil(log(self.prompt, _RATIO)), ceil(log(self.most, _RATIO)), self.restricted


def made_up(kind: str, count: int, seed: int) -> list[Line]:
    """``chats``: short ones; ``documents``: long prompts, short answers; ``mixed``: both, every fifth for the
    operator's machines alone, sorted by length as files often are."""
    chance = random.Random(f"{kind} {seed}")

    def line(prompt: float, output: float, *, restricted: bool = False) -> Line:
        tokens = max(1, round(chance.lognormvariate(log(output), 0.7)))
        most = 64 * ceil(output * 4 / 64)
        return Line(max(1, round(chance.lognormvariate(log(prompt), 0.6))), min(tokens, most), most, restricted)

    if kind == "chats":
        return [line(120, 220) for _ in range(count)]
    if kind == "documents":
        return [line(3_000, 90) for _ in range(count)]
    mixed = [line(*chance.choice(((120, 220), (3_000, 90))), restricted=n % 5 == 0) for n in range(count)]
    return sorted(mixed, key=lambda one: one.prompt)


def recorded(database_url: str, count: int) -> list[Line]:
    """The newest answers of a ledger, oldest first: how long they were, and whether they had to stay."""
    ledger = Ledger(database_url)
    try:
        rows = ledger.read(usage.finished_since, 0, limit=count)
    finally:
        ledger.close()
    return [
        Line(row.input_tokens, row.output_tokens, 2 * row.output_tokens, row.privacy == "restricted")
        for row in reversed(rows)
        if row.input_tokens > 0 and row.output_tokens > 0
    ]


@dataclass(slots=True)
class Place:
    """``held``: lines that wait there. ``factor``: how much slower it has been lately than it was known to be."""

    deployment: Deployment
    slots: int
    held: deque[Line] = field(default_factory=deque)
    running: int = 0
    factor: float = 1.0

    @property
    def room(self) -> int:
        return 2 * self.slots - self.running - len(self.held)


@dataclass(frozen=True, slots=True)
class Outcome:
    lines: int
    in_time: int
    cost_usd: float


class House:
    """One batch, from its beginning to its deadline. Seconds from its beginning."""

    def __init__(self, lines: Sequence[Line], deadline_s: float, seed: int) -> None:
        self.now = 0.0
        self._deadline_s = deadline_s
        self._places = {name: Place(CATALOG.by_deployment[name], slots) for name, (slots, *_) in PLACES.items()}
        self._ends: list[tuple[float, int, str]] = []
        self._chance = random.Random(seed)
        self._started = 0
        self._cost_usd = 0.0
        self._in_time = 0
        self._lines = len(lines)
        self._lengths = _lengths(lines)
        self.waiting: dict[Any, deque[Line]] = {}
        self.specs: dict[Any, JobSpec] = {}
        for line in lines:
            self.waiting.setdefault(line.alike, deque()).append(line)
        for alike, some in self.waiting.items():
            self.specs[alike] = JobSpec(
                "job_1",
                CHAT,
                "m",
                privacy="restricted" if alike[2] else "public",
                priority="batch",
                needs=("chat",),
                prompt_tokens=max(line.prompt for line in some),
                max_output_tokens=max(line.most for line in some),
                deadline_ms=_NOW_MS + int(deadline_s * 1000),
            )

    def world(self) -> World:
        now_ms = _NOW_MS + int(self.now * 1000)
        paces: dict[tuple[str, str], Pace] = {}
        states = {}
        for name, place in self._places.items():
            slots, base_s, prompt_s, token_s = PLACES[name]
            factor = place.factor
            mean_s = factor * (base_s + prompt_s * self._lengths[1] + token_s * self._lengths[2])
            paces[CHAT, name] = Pace(50, now_ms, mean_s, base_s * factor, prompt_s * factor, token_s * factor, 50)
            states[name] = DeploymentState(1, slots, 2 * slots, place.running + len(place.held))
        return World(states, Experience(paces, {(CHAT, "m"): self._lengths[0]}), now_ms)

    def holds(self, place: str) -> int:
        return self._places[place].running + len(self._places[place].held)

    def room(self, place: str) -> int:
        return self._places[place].room

    def send(self, alike: Any, place: str) -> None:
        self._places[place].held.append(self.waiting[alike].popleft())
        self._start(place)

    def until(self, moment: float) -> None:
        while self._ends and self._ends[0][0] <= moment:
            self.now, _, name = heappop(self._ends)
            self._places[name].running -= 1
            self._in_time += self.now <= self._deadline_s
            self._start(name)
        self.now = moment

    def outcome(self) -> Outcome:
        self.until(self._deadline_s)
        return Outcome(self._lines, self._in_time, self._cost_usd)

    def _start(self, name: str) -> None:
        place = self._places[name]
        while place.held and place.running < place.slots and self.now < self._deadline_s:
            line = place.held.popleft()
            usual_s = _takes(name, line)
            slower = _SLOWER if name == "rack" and self.now > self._deadline_s / 2 else 1.0
            takes_s = usual_s * slower * exp(self._chance.gauss(0, _NOISE))
            place.factor += 0.02 * (takes_s / usual_s - place.factor)
            price = place.deployment.price
            self._cost_usd += token_usd(price, line.prompt, line.output) + machine_usd(price, takes_s, place.slots)
            place.running += 1
            self._started += 1
            heappush(self._ends, (self.now + takes_s, self._started, name))


def _takes(name: str, line: Line) -> float:
    _, base_s, prompt_s, token_s = PLACES[name]
    return base_s + prompt_s * line.prompt + token_s * line.output


def _lengths(lines: Sequence[Line]) -> tuple[AnswerLength, float, float]:
    """What earlier answers have taught of these, and the mean prompt and answer."""
    ended = [0.0] * len(LENGTH_BOUNDS)
    for line in lines:
        ended[next(n for n, bound in enumerate(LENGTH_BOUNDS) if line.output <= bound)] += 1
    mean = sum(line.output for line in lines) / len(lines)
    known = AnswerLength(len(lines), _NOW_MS, mean, survival(ended, [0.0] * len(ended)))
    return known, sum(line.prompt for line in lines) / len(lines), mean


def line_by_line(house: House, deadline_s: float, said: dict[str, Any]) -> Outcome:
    """As the scheduler does without a plan: each line at the first place of its decision that has room."""
    while house.now < deadline_s and any(house.waiting.values()):
        world = house.world()
        for alike, lines in house.waiting.items():
            if not lines:
                continue
            decision = decide(replace(house.specs[alike], **said), CATALOG, _HASH, world)
            for candidate in decision.plan:
                while lines and house.room(candidate.deployment) > 0:
                    house.send(alike, candidate.deployment)
        house.until(house.now + deadline_s / _ROUNDS)
    return house.outcome()


def planned(house: House, deadline_s: float) -> Outcome:
    """By plans that are made again and again; each line is decided again when it is sent."""
    shares: Counter[tuple[Any, str]] = Counter()
    again_s = 0.0
    while house.now < deadline_s and any(house.waiting.values()):
        world = house.world()
        if house.now >= again_s:
            shares = _shares(house, world, deadline_s - house.now)
            again_s = house.now + deadline_s / _PLANS
        for (alike, place), count in list(shares.items()):
            if not count or not house.room(place) > 0:
                continue
            chosen = decide(replace(house.specs[alike], planned=place), CATALOG, _HASH, world).chosen
            while chosen is not None and shares[alike, place] and house.room(chosen.deployment) > 0:
                house.send(alike, chosen.deployment)
                shares[alike, place] -= 1
        house.until(house.now + deadline_s / _ROUNDS)
    return house.outcome()


def _shares(house: House, world: World, left_s: float) -> Counter[tuple[Any, str]]:
    names = {repr(alike): alike for alike in house.waiting}
    groups = [
        Group(name, len(house.waiting[alike]), ways_of(house.specs[alike], CATALOG, _HASH, world).ways)
        for name, alike in names.items()
        if house.waiting[alike]
    ]
    mean_s = {name: world.experience.paces[CHAT, name].engine_s for name in PLACES}
    own = {name: house.holds(name) for name in PLACES}
    busy_s = {name: own[name] * mean_s[name] for name in PLACES}
    rooms = rooms_of(CATALOG.by_deployment.values(), CHAT, world, own, busy_s, window=4_000)
    plan = plan_batch(groups, rooms, left_s)
    return Counter({(names[share.group], share.place): share.lines for share in plan.shares})


def own_machines_s(lines: Sequence[Line]) -> float:
    """Seconds that the operator's own machines would take for all of them."""
    rate = 0.0
    for name in ("desk", "rack"):
        rate += PLACES[name][0] / (sum(_takes(name, line) for line in lines) / len(lines))
    return len(lines) / rate


def measure(traces: dict[str, list[Line]], seed: int) -> Report:
    rows: list[tuple[Any, ...]] = []
    plan_usd = greedy_usd = 0.0
    worst_hits = 1.0
    details = []
    for trace, lines in traces.items():
        for deadline, share in DEADLINES.items():
            deadline_s = share * own_machines_s(lines)

            def anew() -> House:
                return House(lines, deadline_s, seed)  # noqa: B023 - called in this turn

            plan = planned(anew(), deadline_s)
            greedy = {name: line_by_line(anew(), deadline_s, said) for name, said in LINE_BY_LINE.items()}
            best = best_of(greedy, plan)
            plan_usd, greedy_usd = plan_usd + plan.cost_usd, greedy_usd + greedy[best].cost_usd
            worst_hits = min(worst_hits, plan.in_time / max(1, greedy[best].in_time))
            case = f"{trace}, {deadline}"
            rows.append((case, "plan", plan.in_time / plan.lines, plan.cost_usd, 1.0))
            for policy, other in greedy.items():
                label = f"{policy} *" if policy == best else policy
                ratio = plan.cost_usd / other.cost_usd if other.cost_usd else None
                rows.append((case, label, other.in_time / other.lines, other.cost_usd, ratio))
            details.append(
                {
                    "case": case,
                    "lines": plan.lines,
                    "deadline_s": deadline_s,
                    "plan": {"in_time": plan.in_time, "cost_usd": plan.cost_usd},
                    **{p: {"in_time": o.in_time, "cost_usd": o.cost_usd} for p, o in greedy.items()},
                    "compared_with": best,
                }
            )
    return Report(
        "plan",
        plan_usd,
        "usd",
        greedy_usd,
        [
            Budget("cost, of that line by line at no fewer deadline hits", 1.0, plan_usd / max(1e-12, greedy_usd), ""),
            Budget("deadline hits, of those line by line", 0.99, worst_hits, "", at_least=True),
        ],
        [Table(("trace, deadline", "by", "in time", "usd", "plan / it"), rows)],
        {"seed": seed, "cases": details},
    )


def best_of(greedy: dict[str, Outcome], plan: Outcome) -> str:
    """The cheapest policy of those that have as many lines done in time as the plan, but for one in a hundred; where
    none has, that with the most."""
    enough = [policy for policy, outcome in greedy.items() if outcome.in_time >= 0.99 * plan.in_time]
    if enough:
        return min(enough, key=lambda policy: greedy[policy].cost_usd)
    return max(greedy, key=lambda policy: (greedy[policy].in_time, -greedy[policy].cost_usd))


_KINDS: dict[str, Callable[[int, int], list[Line]]] = {
    kind: (lambda count, seed, kind=kind: made_up(kind, count, seed))  # type: ignore[misc]
    for kind in ("chats", "documents", "mixed")
}


@benchmark
@click.option("--lines", type=click.IntRange(10), default=2_000, show_default=True, help="Of each batch.")
@click.option("--seed", default=1, show_default=True, help="The same seed, the same figures.")
@click.option("--ledger", help="Address of a ledger whose newest answers are the lines. [default: made up ones]")
def command(lines: int, seed: int, ledger: str | None) -> Report:
    """What a batch with a deadline costs by a plan of the whole, and line by line."""
    if ledger is None:
        return measure({kind: make(lines, seed) for kind, make in _KINDS.items()}, seed)
    found = recorded(ledger, lines)
    if not found:
        raise click.UsageError("this ledger has no answers with tokens")
    return measure({"recorded": found}, seed)
