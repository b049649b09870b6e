"""Who does how much of which kind of work, for the least cost: a small integer program, solved exactly. Pure.

Of each kind ``n`` lines go to places; a line takes a part of a place's room and a part of the purse. What can't go
anywhere stays where it is. As many lines as possible are placed, and of all ways to do that the cheapest is taken.

**The relaxation** (lines may be divided) is a linear program in which each kind has one equation of its own
(its lines add up) and few rows couple the kinds (a row a place, one for the purse). The simplex method with
generalised upper bounds (Dantzig and Van Slyke, 1967) needs a basis of the coupling rows alone: one option of each
kind, its *key*, takes what the kind's other options in the basis don't. So a hundred kinds on ten places
are pivots of eleven by eleven. At its end no option has a negative reduced cost: by duality there is nothing cheaper.

**Whole lines.** A vertex divides the lines of at most as many kinds as there are coupling rows. Branch and bound does
the rest: of a kind with 2.4 lines somewhere either at least 3 go there, or all but 2 of its lines elsewhere; both are
again programs of this form. It ends within a thousandth of the least cost, or where it takes too long; the bound says
how far from the least cost the answer can be at most. Where there are few ways to place all lines each is tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from math import comb, floor, fsum, prod

#: Of what is compared, costs between 0 and 1 and shares of a row between 0 and 1.
_EPSILON = 1e-9
#: Parts of a room or a purse so small that all lines of a batch together take none of it.
_NOTHING = 1e-12
#: Lines, that are whole at the end.
_WHOLE = 1e-6
#: Of the cost: the search ends where no more can be saved. Predictions are far less exact.
_NEAR = 1e-3
#: Ways to place all lines that are few enough to try each: there a divided line would say little of a whole one.
_FEW_WAYS = 20_000
#: Divided programs that are looked at at least, and so many times the size of one: some tenths of a second in all.
_NODES = 8
_WORK = 8_000
_MOST_PIVOTS = 20_000
#: After so many pivots without any gain the first column that would do is taken (Bland), which can't go in circles.
_STALLED = 50


@dataclass(frozen=True, slots=True)
class Option:
    """A line of the kind at ``place``: its cost, the part that it takes of the place's room, and of the purse."""

    place: str
    cost: float
    room: float = 0.0
    purse: float = 0.0


@dataclass(frozen=True, slots=True)
class Kind:
    """Lines that are alike."""

    name: str
    lines: int
    options: tuple[Option, ...]


@dataclass(frozen=True, slots=True)
class Assignment:
    """``lines``: (kind, place) -> how many. ``cost``: of all. ``bound``: no assignment of as many lines costs less."""

    lines: Mapping[tuple[str, str], int]
    placed: int
    cost: float
    bound: float

    @property
    def optimal(self) -> bool:
        return self.cost - self.bound <= _WHOLE * max(1.0, abs(self.cost))


def assign(kinds: Sequence[Kind], rooms: Mapping[str, float], purse: float | None = None) -> Assignment:
    """The most lines for the least cost. ``rooms``: place -> how much there is of it; a place that isn't in it has no
    end. ``purse``: how much there is for all lines together; ``None``: no end.

    In whatever order kinds, options and places come, the answer is the same.
    """
    problem = _Problem(kinds, rooms, purse)
    if problem.ways() <= _FEW_WAYS:
        best = problem.tried()
        return problem.assignment(best, problem.value(best))
    return problem.assignment(*_searched(problem))


def _searched(problem: _Problem) -> tuple[_Lines, float]:
    """Branch and bound; answers the best found, and a value that none is below."""
    start = [
        _Part(number, kind.lines, tuple(range(len(problem.costs[number])))) for number, kind in enumerate(problem.kinds)
    ]
    best = problem.one_by_one()
    solved = _Relaxed(problem, start, problem.total)
    ties = count()
    open_: list[tuple[float, int, _Relaxed]] = [(solved.value, next(ties), solved)]
    left = max(_NODES, _WORK // (problem.width * sum(map(len, problem.costs)) + 1))
    while open_:
        bound, _, node = heappop(open_)
        best = min(best, problem.rounded(node), key=problem.value)
        near = problem.near(best)
        split = node.split()
        if bound >= near or left <= 0:
            return best, bound
        if split is None:
            continue
        left -= 1
        for parts in split:
            child = _Relaxed(problem, parts, node.most)
            if child.value < near:
                heappush(open_, (child.value, next(ties), child))
    return best, problem.near(best)


@dataclass(frozen=True, slots=True)
class _Part:
    """Lines of a kind, and the numbers of the options that they may take."""

    kind: int
    lines: int
    options: tuple[int, ...]


#: (kind, option) -> lines
_Lines = dict[tuple[int, int], int]


class _Problem:
    """In order, and in units in which the largest cost, each room and the purse are 1."""

    def __init__(self, kinds: Sequence[Kind], rooms: Mapping[str, float], purse: float | None) -> None:
        self.kinds = sorted((kind for kind in kinds if kind.lines > 0), key=lambda kind: kind.name)
        useful = {option.place for kind in self.kinds for option in kind.options}
        self.rows = sorted(place for place in rooms if place in useful)
        self._purse = purse
        at = {place: row for row, place in enumerate(self.rows)}
        self._scale = max((option.cost for kind in self.kinds for option in kind.options), default=0.0)
        if self._scale <= _NOTHING:
            self._scale = 1.0
        self.total = sum(kind.lines for kind in self.kinds)
        #: Of a line that isn't placed: more than all that could be saved on the others.
        self.unplaced = 1.0 + self.total
        self.costs: list[list[float]] = []
        self.columns: list[list[tuple[tuple[int, float], ...]]] = []
        self.names: list[list[str]] = []
        #: A row a place, one for the purse, and one for how many lines there may be.
        self.width = len(self.rows) + 2
        for kind in self.kinds:
            costs, columns, names = [], [], []
            for option in sorted(kind.options, key=lambda option: (option.cost, option.place)):
                column = []
                if option.place in at:
                    column.append((at[option.place], _share(option.room, rooms[option.place])))
                if purse is not None:
                    column.append((len(self.rows), _share(option.purse, purse)))
                column.append((self.width - 1, 1 / self.total))
                if all(share <= 1 + _EPSILON for _, share in column):
                    costs.append(option.cost / self._scale)
                    columns.append(tuple((row, share) for row, share in column if share))
                    names.append(option.place)
            self.costs.append(costs)
            self.columns.append(columns)
            self.names.append(names)

    def near(self, lines: _Lines) -> float:
        """A value from which on nothing better is looked for."""
        cost = fsum(self.costs[k][o] * n for (k, o), n in lines.items())
        return self.value(lines) - max(_NEAR * cost, _WHOLE)

    def value(self, lines: _Lines) -> float:
        placed = sum(lines.values())
        return (self.total - placed) * self.unplaced + fsum(self.costs[k][o] * n for (k, o), n in lines.items())

    def one_by_one(self) -> _Lines:
        """Each line where it is cheapest of what is left, as if none came after it."""
        return self._filled({}, [(number, kind.lines) for number, kind in enumerate(self.kinds)])

    def ways(self) -> float:
        """In how many the lines could be placed, did they all fit."""
        return prod(
            comb(kind.lines + len(costs), len(costs)) for kind, costs in zip(self.kinds, self.costs, strict=True)
        )

    def tried(self) -> _Lines:
        """The best of all ways, but for those that can't become better than one that is known."""
        best = self.one_by_one()
        best_value = self.value(best)
        cheapest = [
            min(costs, default=self.unplaced) * kind.lines for costs, kind in zip(self.costs, self.kinds, strict=True)
        ]
        to_come = [fsum(cheapest[number:]) for number in range(len(cheapest) + 1)]
        lines: _Lines = {}

        def go(kind: int, option: int, waiting: int, left: tuple[float, ...], value: float) -> None:
            nonlocal best, best_value
            if value + to_come[kind + 1] >= best_value - _EPSILON:
                return
            if option == len(self.costs[kind]):
                value += waiting * self.unplaced
                if kind + 1 < len(self.kinds):
                    go(kind + 1, 0, self.kinds[kind + 1].lines, left, value)
                elif value < best_value - _EPSILON:
                    best, best_value = dict(lines), value
                return
            column, cost = self.columns[kind][option], self.costs[kind][option]
            for amount in range(self._fitting(column, left, waiting), -1, -1):
                lines[kind, option] = amount
                rest = list(left)
                for row, share in column:
                    rest[row] -= share * amount
                go(kind, option + 1, waiting - amount, tuple(rest), value + cost * amount)
            del lines[kind, option]

        if self.kinds:
            go(0, 0, self.kinds[0].lines, (1.0,) * self.width, 0.0)
        return best

    @staticmethod
    def _fitting(column: Sequence[tuple[int, float]], left: Sequence[float], waiting: int) -> int:
        return max(0, min([waiting, *(floor((left[row] + _EPSILON) / share) for row, share in column)]))

    def rounded(self, node: _Relaxed) -> _Lines:
        """The whole lines of a divided solution, and the rest one by one."""
        lines: _Lines = {}
        for (kind, option), amount in node.amounts():
            if whole := floor(amount + _WHOLE):
                lines[kind, option] = lines.get((kind, option), 0) + whole
        rest = [kind.lines for kind in self.kinds]
        for (kind, _), whole in lines.items():
            rest[kind] -= whole
        return self._filled(lines, list(enumerate(rest)))

    def _filled(self, lines: _Lines, rest: Sequence[tuple[int, int]]) -> _Lines:
        left = [1.0] * self.width
        for (kind, option), amount in lines.items():
            for row, share in self.columns[kind][option]:
                left[row] -= share * amount
        for kind, waiting in rest:
            for option, column in enumerate(self.columns[kind]):
                if waiting <= 0:
                    break
                if amount := self._fitting(column, left, waiting):
                    waiting -= amount
                    lines[kind, option] = lines.get((kind, option), 0) + amount
                    for row, share in column:
                        left[row] -= share * amount
        return lines

    def assignment(self, lines: _Lines, bound: float) -> Assignment:
        placed = sum(lines.values())
        cost = fsum(self.costs[k][o] * n for (k, o), n in lines.items()) * self._scale
        proven = (bound - (self.total - placed) * self.unplaced) * self._scale
        named = {(self.kinds[k].name, self.names[k][o]): n for (k, o), n in sorted(lines.items()) if n}
        return Assignment(named, placed, cost, max(0.0, min(cost, proven)))


def _share(part: float, whole: float) -> float:
    """2: more than there is."""
    if part <= _NOTHING * whole:
        return 0.0
    return min(2.0, part / whole) if whole > 0 else 2.0


#: A column of the basis: the slack of a row (part -1), or an option of a part.
_Column = tuple[int, int]
_UNPLACED = -1


class _Relaxed:
    """The program in which lines may be divided, solved."""

    def __init__(self, problem: _Problem, parts: Sequence[_Part], most: int) -> None:
        """``most``: lines that may be placed. Where it turns out to be a part of a line less it is solved again for a
        whole number: what a part of a line costs says nothing of what a whole one does."""
        self._problem = problem
        self.parts = parts
        self.most = most
        self._solve()
        placed = fsum(amount for (_, option), amount in self._amounts.items() if option != _UNPLACED)
        if placed - (whole := floor(placed + _WHOLE)) > _WHOLE:
            self.most = whole
            self._solve()
        self.value = fsum(self._cost(p, o) * amount for (p, o), amount in self._amounts.items())

    def amounts(self) -> list[tuple[tuple[int, int], float]]:
        """(kind, option) -> lines, of those that are placed."""
        placed: dict[tuple[int, int], float] = {}
        for (part, option), amount in self._amounts.items():
            if option != _UNPLACED:
                at = self.parts[part].kind, option
                placed[at] = placed.get(at, 0.0) + amount
        return sorted(placed.items())

    def split(self) -> tuple[list[_Part], list[_Part]] | None:
        """Two programs that together hold every whole solution of this one; ``None``: it is whole."""
        divided = [
            (abs(amount - floor(amount) - 0.5), part, option)
            for (part, option), amount in self._amounts.items()
            if option != _UNPLACED and abs(amount - round(amount)) > _WHOLE
        ]
        if not divided:
            return None
        _, at, option = min(divided)
        amount, part = self._amounts[at, option], self.parts[at]
        others = [one for number, one in enumerate(self.parts) if number != at]
        few = floor(amount)
        without = tuple(o for o in part.options if o != option)
        here = _Part(part.kind, few + 1, (option,))
        more = [here, _Part(part.kind, part.lines - few - 1, part.options)]
        fewer = [_Part(part.kind, part.lines - few, without), _Part(part.kind, few, part.options)]
        return [*others, *(p for p in more if p.lines)], [*others, *(p for p in fewer if p.lines)]

    def _cost(self, part: int, option: int) -> float:
        return self._problem.unplaced if option == _UNPLACED else self._problem.costs[self.parts[part].kind][option]

    def _column(self, part: int, option: int) -> Sequence[tuple[int, float]]:
        return () if option == _UNPLACED else self._problem.columns[self.parts[part].kind][option]

    def _dense(self, column: _Column) -> list[float]:
        """What one more of it takes of the rows, while its part's key takes one less."""
        part, option = column
        dense = [0.0] * self._problem.width
        if part < 0:
            dense[option] = 1.0
            return dense
        for row, share in self._column(part, option):
            dense[row] += share
        for row, share in self._column(part, self._keys[part]):
            dense[row] -= share
        return dense

    def _solve(self) -> None:
        self._begin()
        stalled, last = 0, float("inf")
        for _ in range(_MOST_PIVOTS):
            inverse = _inverse([self._dense(column) for column in self._basis])
            self._amounts, levels = self._levels(inverse)
            prices = self._prices(inverse)
            value = fsum(self._cost(p, o) * amount for (p, o), amount in self._amounts.items())
            stalled = stalled + 1 if value >= last - _EPSILON else 0
            last = value
            entering = self._entering(prices, first=stalled > _STALLED)
            if entering is None:
                return
            self._pivot(entering, inverse, levels)

    def _begin(self) -> None:
        """Each part whole at its cheapest option that still has room for all of it."""
        self._basis: list[_Column] = [(-1, row) for row in range(self._problem.width)]
        self._keys = []
        left = self._rights()
        for part in self.parts:
            key = _UNPLACED
            for option in part.options:
                column = self._problem.columns[part.kind][option]
                if all(share * part.lines <= left[row] for row, share in column):
                    key = option
                    for row, share in column:
                        left[row] -= share * part.lines
                    break
            self._keys.append(key)

    def _rights(self) -> list[float]:
        return [1.0] * (self._problem.width - 1) + [self.most / max(1, self._problem.total)]

    def _levels(self, inverse: Sequence[Sequence[float]]) -> tuple[dict[tuple[int, int], float], list[float]]:
        """Lines by part and option, and the values of the basis."""
        right = self._rights()
        for number, part in enumerate(self.parts):
            for row, share in self._column(number, self._keys[number]):
                right[row] -= share * part.lines
        levels = [fsum(a * b for a, b in zip(row, right, strict=True)) for row in inverse]
        amounts = {(number, self._keys[number]): float(part.lines) for number, part in enumerate(self.parts)}
        for (part_, option), level in zip(self._basis, levels, strict=True):
            if part_ >= 0:
                amounts[part_, option] = max(0.0, level)
                amounts[part_, self._keys[part_]] -= level
        return {at: max(0.0, amount) for at, amount in amounts.items()}, levels

    def _prices(self, inverse: Sequence[Sequence[float]]) -> list[float]:
        gains = [0.0 if p < 0 else self._cost(p, o) - self._cost(p, self._keys[p]) for p, o in self._basis]
        return [
            fsum(gain * inverse[at][row] for at, gain in enumerate(gains) if gain) for row in range(self._problem.width)
        ]

    def _entering(self, prices: Sequence[float], *, first: bool) -> _Column | None:
        """The column that gains most a unit; with ``first`` the first that gains anything."""
        basis = set(self._basis)
        best, found = -_EPSILON, None
        for row, price in enumerate(prices):
            if -price < best and (-1, row) not in basis:
                best, found = -price, (-1, row)
                if first:
                    return found
        for number, part in enumerate(self.parts):
            key = self._keys[number]
            costs, columns = self._problem.costs[part.kind], self._problem.columns[part.kind]
            worth = self._cost(number, key)
            for row, share in self._column(number, key):
                worth -= prices[row] * share
            for option in (*part.options, _UNPLACED):
                if option == key:
                    continue
                if option == _UNPLACED:
                    reduced = self._problem.unplaced - worth
                else:
                    reduced = costs[option] - worth
                    for row, share in columns[option]:
                        reduced -= prices[row] * share
                if reduced < best and (number, option) not in basis:
                    best, found = reduced, (number, option)
                    if first:
                        return found
        return found

    def _pivot(self, entering: _Column, inverse: Sequence[Sequence[float]], levels: Sequence[float]) -> None:
        column = self._dense(entering)
        steps = [fsum(a * b for a, b in zip(row, column, strict=True)) for row in inverse]
        rates: dict[int, float] = {}
        for (part, _), step in zip(self._basis, steps, strict=True):
            if part >= 0:
                rates[part] = rates.get(part, 0.0) + step
        if entering[0] >= 0:
            rates[entering[0]] = rates.get(entering[0], 0.0) - 1.0
        # Who would fall below nothing first goes: a column of the basis, or a part's key. Of several the largest
        # step, for the numbers' sake, and then the first.
        limits = [(max(0.0, levels[at]) / step, -step, 0, at) for at, step in enumerate(steps) if step > _EPSILON]
        limits += [
            (self._amounts[part, self._keys[part]] / -rate, rate, 1, part)
            for part, rate in rates.items()
            if rate < -_EPSILON
        ]
        if not limits:
            raise ArithmeticError("a program whose lines are counted has no end")
        _, _, of_a_part, at = min(limits)
        if not of_a_part:
            self._basis[at] = entering
            return
        others = [place for place, (part, _) in enumerate(self._basis) if part == at]
        if others:
            self._keys[at] = self._basis[others[0]][1]
            self._basis[others[0]] = entering
        else:
            self._keys[at] = entering[1]


def _inverse(columns: Sequence[Sequence[float]]) -> list[list[float]]:
    """Of the matrix with these columns (Gauss and Jordan, with partial pivoting)."""
    size = len(columns)
    rows = [[columns[c][r] for c in range(size)] + [float(r == c) for c in range(size)] for r in range(size)]
    for at in range(size):
        pivot = max(range(at, size), key=lambda row: abs(rows[row][at]))
        rows[at], rows[pivot] = rows[pivot], rows[at]
        divisor = rows[at][at]
        rows[at] = [value / divisor for value in rows[at]]
        for row in range(size):
            if row != at and (factor := rows[row][at]):
                rows[row] = [value - factor * base for value, base in zip(rows[row], rows[at], strict=True)]
    return [row[size:] for row in rows]
