"""Rules at work: which one counts for a request, at the door and where it is placed. Pure.

Conditions are compiled once per catalogue. A value is worked out only if some condition reads it, and
requests that don't differ in what is read share one walk through the rules.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from zoneinfo import ZoneInfo

from fabric.contracts.catalog import Catalog
from fabric.contracts.job import JobSpec
from fabric.contracts.rule import Rule, Share, Where
from fabric.contracts.terms import TIERS
from fabric.routing.world import World

if TYPE_CHECKING:
    from fabric.contracts.condition import Condition

#: Catalogues whose compiled rules are kept: the one in force, and those that jobs were decided under lately.
_KEPT = 8
_NO_WORLD = World()
WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_MINUTE_MS = 60_000

_OF_THE_JOB: dict[str, Callable[[JobSpec], Hashable]] = {
    "model": lambda spec: spec.model,
    "endpoint": lambda spec: spec.endpoint,
    "tenant": lambda spec: spec.tenant,
    "key": lambda spec: spec.key_id or "",
    "tags": lambda spec: spec.tags,
    "privacy": lambda spec: spec.privacy,
    "entities": lambda spec: spec.entities,
    "priority": lambda spec: spec.priority,
    "policy": lambda spec: spec.policy or "",
    "needs": lambda spec: spec.needs,
    "prompt_tokens": lambda spec: spec.prompt_tokens,
    "max_tokens": lambda spec: spec.max_output_tokens or 0,
    "stream": lambda spec: spec.stream,
    "batch": lambda spec: spec.batch_id is not None,
}


class Placing(NamedTuple):
    """What the rules say of where a job runs. ``canary``: first there if ``drawn``, else there last."""

    rule: str | None = None
    policy: str | None = None
    require: Where | None = None
    prefer: Where | None = None
    canary: str | None = None
    drawn: bool = False

    def rank(self, tier: Any, region: str, deployment: str) -> int:
        """Lower goes first, before any score."""
        if self.canary is not None and deployment == self.canary:
            return -1 if self.drawn else 2
        return 1 if self.prefer is not None and not self.prefer.holds(tier, region, deployment) else 0


NO_PLACING = Placing()


class Compiled(NamedTuple):
    """A rule with its condition ready. ``number`` counts from 0 in the catalogue."""

    number: int
    name: str
    condition: Condition | None
    rule: Rule


class Rulebook:
    """The compiled rules of one catalogue, and the names that they read."""

    def __init__(self, catalog: Catalog) -> None:
        """
        Raises:
            ValueError: a condition is wrong.
        """
        rules = [_compiled(number, rule, catalog) for number, rule in enumerate(catalog.rules)]
        self.door = tuple(one for one in rules if one.rule.at_the_door)
        self.placing = tuple(one for one in rules if one.rule.at_placing)
        self.door_reads, self.placing_reads = _reads(self.door), _reads(self.placing)
        self.catalog = catalog
        self.zone = ZoneInfo(catalog.rule_timezone)
        self.headers = {f"header.{name.replace('-', '_')}": name for name in catalog.rule_headers}
        #: Whether the same job may be placed otherwise a little later.
        self.volatile = any(name not in _OF_THE_JOB and name not in self.headers for name in self.placing_reads)


def _compiled(number: int, rule: Rule, catalog: Catalog) -> Compiled:
    condition = None
    if rule.when is not None:
        from fabric.contracts.condition import Condition  # a library that costs nothing where there are no rules

        condition = Condition(rule.when, catalog.rule_headers)
    return Compiled(number, rule.name or f"rule {number + 1}", condition, rule)


_books: dict[str, Rulebook] = {}


def rulebook(catalog: Catalog, hash_: str) -> Rulebook | None:
    """Compiled once per ``hash_`` (``policy_hash`` of the catalogue); ``None`` where there are no rules."""
    if not catalog.rules:
        return None
    book = _books.get(hash_)
    if book is None or book.catalog is not catalog:
        while len(_books) >= _KEPT:
            _books.pop(next(iter(_books)), None)
        book = _books[hash_] = Rulebook(catalog)
    return book


class Moment:
    """The rules in one world: for all the jobs of a round."""

    def __init__(self, book: Rulebook, world: World = _NO_WORLD) -> None:
        self._book = book
        self._world = world
        self._clock: dict[str, Hashable] | None = None
        self._placings: dict[Hashable, tuple[Compiled | None, Placing]] = {}

    def placing(self, spec: JobSpec) -> Placing:
        """The first rule that matches and says something of where a job runs."""
        read = {name: self._value(name, spec) for name in self._book.placing_reads}
        key = tuple(read.values())
        known = self._placings.get(key)
        if known is None:
            found = _first(self._book.placing, read, self._book.catalog.rule_headers)
            known = self._placings[key] = found, _placing(found)
        found, placing = known
        if found is not None and found.rule.canary is not None:
            return placing._replace(drawn=drawn(found.rule.canary, found.name, spec.id))
        return placing

    def at_the_door(self, spec: JobSpec) -> tuple[str, Rule] | None:
        """The first rule that matches and says something of whether and how a request comes in, and its name."""
        read = {name: self._value(name, spec) for name in self._book.door_reads}
        found = _first(self._book.door, read, self._book.catalog.rule_headers)
        return None if found is None else (found.name, found.rule)

    def _value(self, name: str, spec: JobSpec) -> Hashable:
        of_the_job = _OF_THE_JOB.get(name)
        if of_the_job is not None:
            return of_the_job(spec)
        if name == "budget_used":
            return self._budget_used(spec)
        header = self._book.headers.get(name)
        if header is not None:
            return next((value for known, value in spec.headers if known == header), "")
        if self._clock is None:
            self._clock = {**_clock(self._book.zone, self._world.now_ms), **_loads(self._book.catalog, self._world)}
        return self._clock[name]

    def _budget_used(self, spec: JobSpec) -> float:
        """Of the job's budgets the one that is used up most; 0 without any."""
        shares = self._world.budgets
        return max((shares.get(b.name, 0.0) for b in self._book.catalog.budgets if b.covers(spec)), default=0.0)


def reads_budgets(catalog: Catalog, hash_: str) -> bool:
    """Whether ``World.budgets`` has to be known."""
    book = rulebook(catalog, hash_)
    return book is not None and "budget_used" in book.placing_reads


def _reads(rules: Sequence[Compiled]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for one in rules if one.condition for name in one.condition.reads))


def _first(rules: Sequence[Compiled], read: Mapping[str, Hashable], headers: Sequence[str]) -> Compiled | None:
    if not read:
        return next((one for one in rules if one.condition is None or one.condition.true_of(read)), None)
    from fabric.contracts.condition import Values

    values = Values({name: list(value) if isinstance(value, tuple) else value for name, value in read.items()}, headers)
    return next((one for one in rules if one.condition is None or one.condition.true_of(values)), None)


def _placing(found: Compiled | None) -> Placing:
    if found is None:
        return NO_PLACING
    rule = found.rule
    return Placing(
        found.name,
        rule.set.policy if rule.set else None,
        rule.require,
        rule.prefer,
        rule.canary.deployment if rule.canary else None,
    )


def drawn(share: Share, rule: str, job_id: str) -> bool:
    """Whether this job is one of the share: told from its id, so that every decision of it agrees."""
    digest = hashlib.blake2b(f"{rule}\n{job_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) < share.weight * 2**64


def _clock(zone: ZoneInfo, now_ms: int) -> dict[str, Hashable]:
    now = datetime.fromtimestamp(now_ms / 1000, zone)
    return {"hour": now.hour, "time": f"{now.hour:02}:{now.minute:02}", "weekday": WEEKDAYS[now.weekday()]}


def _loads(catalog: Catalog, world: World) -> dict[str, Hashable]:
    """Tier -> jobs there per slot of its live workers: 1 is full, more is overbooked. One without workers is full."""
    loads: dict[str, Hashable] = {}
    for tier in TIERS:
        states = [world.of(deployment.name) for deployment in catalog.of_tier(tier)]
        slots = sum(state.slots for state in states)
        loads[f"load.{tier}"] = sum(state.busy for state in states) / slots if slots else 1.0
    return loads


def places_tag(catalog: Catalog, hash_: str, now_ms: int) -> str:
    """Names what a side lane's places were worked out under. Where rules read the clock or the load that holds
    for a minute, after which the jobs that wait for places are looked at again."""
    book = rulebook(catalog, hash_)
    return hash_ if book is None or not book.volatile else f"{hash_}.{now_ms // _MINUTE_MS}"
