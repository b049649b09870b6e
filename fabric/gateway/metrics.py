"""Every metric of the gateway, and ``GET /metrics``.

What this process did is counted here; what the fabric holds (backlog, slots, dead letters) is read
from the store when somebody looks, so that it is right whatever the number of gateways. Labels are
bounded: no tenant, no job id, no path as the caller wrote it.
"""

from __future__ import annotations

import os
from collections import Counter as Tally
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from fabric.contracts.budget import Unit
from fabric.contracts.catalog import PRIVACY_LABELS, Tier
from fabric.contracts.errors import Fault
from fabric.contracts.job import ENDPOINTS, PRIORITIES
from fabric.contracts.limits import LimitKind
from fabric.gateway import counted
from fabric.store.counts import Counts
from fabric.store.transitions import Room

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
#: What answers to inference are counted from the beginning.
_STATUSES = ("200", "429", "500", "502", "503", "504")
#: (whose, in what).
_BUDGETS = tuple(product(("tenant", "key", "tag", "all"), get_args(Unit)))
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600)


class Metrics:
    """One set per application."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "fabric_http_requests", "HTTP requests answered.", ("route", "method", "status"), registry=self.registry
        )
        self.errors = Counter(
            "fabric_errors", "Errors answered, by whose fault they are.", ("fault",), registry=self.registry
        )
        self.refusals = Counter(
            "fabric_rate_limit_refusals",
            "Requests refused by a rate limit of their key or tenant.",
            ("scope", "limit"),
            registry=self.registry,
        )
        self.budget_blocks = Counter(
            "fabric_budget_blocks",
            "Requests refused because they could go beyond a hard budget.",
            ("scope", "unit"),
            registry=self.registry,
        )
        self.config_info = Gauge(
            "fabric_config_info", "The catalogue and rules in force, by their hash.", ("hash",), registry=self.registry
        )
        self.config_failures = Counter(
            "fabric_config_reload_failures",
            "Configuration files that were refused while the fabric ran.",
            registry=self.registry,
        )
        self.first_token_seconds = Histogram(
            "fabric_time_to_first_token_seconds",
            "From the arrival of a streamed request to its first token.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        stages = Histogram(
            "fabric_stage_seconds",
            "Time that jobs spend in each stage.",
            ("stage", "tier"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.accept_seconds = stages.labels("accept", "")
        self._begin()

    def _begin(self) -> None:
        """Counters with labels that are known beforehand begin at 0: the first failure of a kind is an increase."""
        for fault in get_args(Fault):
            self.errors.labels(fault)
        for scope, kind in product(("key", "tenant"), get_args(LimitKind)):
            self.refusals.labels(scope, kind)
        for scope, unit in _BUDGETS:
            self.budget_blocks.labels(scope, unit)
        for path, status in product(ENDPOINTS, _STATUSES):
            self.requests.labels(path, "POST", status)

    def exposition(self, snapshot: Snapshot | None) -> bytes:
        """The text format. ``None``: the store is away and its part is left out."""
        registry = self.registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        whole = CollectorRegistry()
        whole.register(_Own(registry, snapshot))
        whole.register(_Shared(snapshot))
        return generate_latest(whole)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the store holds at one moment."""

    room: Room
    parked: Tally[str]  #: broker queue -> parked jobs
    fenced: int
    backlog_s: Mapping[Tier, float]  #: tier -> seconds that it would need for what waits
    #: label -> jobs that it kept away from a deployment
    label_blocks: Mapping[str, int] = field(default_factory=dict)
    #: (tier left, tier gone to, code of the error) -> jobs
    fallbacks: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    hedges: Mapping[str, int] = field(default_factory=dict)  #: ``begun`` and ``won`` -> second tries
    deployments: Sequence[str] = ()
    budgets: Mapping[str, float] = field(default_factory=dict)  #: name -> share that is spent or reserved
    #: (scope, unit) -> windows of soft budgets that were used up
    budget_warnings: Mapping[tuple[str, str], int] = field(default_factory=dict)
    counts: Counts = field(default_factory=dict)  #: of what jobs came to
    set_aside: int = 0  #: messages that no scheduler of this fabric has sent


class _Own(Collector):
    """This process's metrics. One that the store has more samples of is told once, with all of them."""

    def __init__(self, registry: CollectorRegistry, snapshot: Snapshot | None) -> None:
        self._registry = registry
        self._counts = snapshot.counts if snapshot is not None else {}

    def collect(self) -> Iterator[Metric]:
        stages = counted.stage_seconds(self._counts)
        for metric in self._registry.collect():
            if metric.name == counted.STAGE_SECONDS:
                metric.samples = [*metric.samples, *stages.samples]
            yield metric


class _Shared(Collector):
    def __init__(self, snapshot: Snapshot | None) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "fabric_store_up", "Whether the job store answered this scrape.", value=self._snapshot is not None
        )
        if self._snapshot is not None:
            yield _backlog(self._snapshot.room)
            yield _backlog_seconds(self._snapshot.backlog_s)
            yield _slots(self._snapshot.room)
            yield _dead_letters(self._snapshot.parked)
            yield _label_blocks(self._snapshot.label_blocks)
            yield _fallbacks(self._snapshot.fallbacks)
            yield _hedges(self._snapshot.hedges)
            yield _budgets(self._snapshot.budgets)
            yield _budget_warnings(self._snapshot.budget_warnings)
            yield _breakers(self._snapshot.deployments, self._snapshot.room)
            yield from counted.families(self._snapshot.counts)
            yield CounterMetricFamily(
                "fabric_fenced_commits", "Outcomes refused as late or repeated.", value=self._snapshot.fenced
            )
            yield CounterMetricFamily(
                "fabric_messages_set_aside",
                "Messages in the broker that no scheduler of this fabric has sent.",
                value=self._snapshot.set_aside,
            )


def _backlog(room: Room) -> Metric:
    family = GaugeMetricFamily("fabric_backlog_jobs", "Jobs that wait for a place to run.", labels=("class",))
    for priority in PRIORITIES:
        family.add_metric([priority], sum(lane.length for lane in room.lanes if lane.priority == priority))
    return family


def _backlog_seconds(backlog_s: Mapping[Tier, float]) -> Metric:
    family = GaugeMetricFamily(
        "fabric_backlog_seconds", "Time that a tier's workers would need for all that waits.", labels=("tier",)
    )
    for tier, seconds in backlog_s.items():
        family.add_metric([tier], seconds)
    return family


def _slots(room: Room) -> Metric:
    family = GaugeMetricFamily("fabric_worker_slots", "Requests that engines run at once.", labels=("tier", "state"))
    slots: Tally[str] = Tally()
    used: Tally[str] = Tally()
    for worker in room.workers:
        slots[worker.tier] += sum(worker.slots.values())
        used[worker.tier] += sum(min(n, worker.slots.get(name, 0)) for name, n in worker.running.items())
    for tier, total in slots.items():
        family.add_metric([tier, "busy"], used[tier])
        family.add_metric([tier, "free"], total - used[tier])
    return family


def _label_blocks(blocks: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(
        "fabric_label_blocks", "Accepted jobs that their label keeps away from a deployment.", labels=("label",)
    )
    for label in PRIVACY_LABELS:
        family.add_metric([label], blocks.get(label, 0))
    return family


def _budgets(used: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(
        "fabric_budget_used_ratio", "Share of a budget's window that is spent or reserved.", labels=("budget",)
    )
    for name, ratio in used.items():
        family.add_metric([name], ratio)
    return family


def _budget_warnings(told: Mapping[tuple[str, str], int]) -> Metric:
    family = CounterMetricFamily(
        "fabric_budget_warnings", "Windows of soft budgets that were used up.", labels=("scope", "unit")
    )
    for labels in sorted({*_BUDGETS, *told}):
        family.add_metric(labels, told.get(labels, 0))
    return family


def _fallbacks(moved: Mapping[tuple[str, str, str], int]) -> Metric:
    family = CounterMetricFamily(
        "fabric_fallbacks",
        "Jobs that went to their next place because their tries at one were used up.",
        labels=("from_tier", "to_tier", "reason"),
    )
    for labels, count in moved.items():
        family.add_metric(labels, count)
    return family


def _hedges(tries: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(
        "fabric_hedges", "Second tries of jobs that took long, and those that were quicker.", labels=("result",)
    )
    for result in ("begun", "won"):
        family.add_metric([result], tries.get(result, 0))
    return family


#: As numbers, so that a graph rises while a deployment is left alone.
_BREAKER_STATES = {"closed": 0, "half_open": 1, "open": 2}


def _breakers(deployments: Iterable[str], room: Room) -> Metric:
    family = GaugeMetricFamily("fabric_breaker_state", "0: closed, 1: half open, 2: open.", labels=("deployment",))
    for name in deployments:
        state = room.breakers[name].state if name in room.breakers else "closed"
        family.add_metric([name], _BREAKER_STATES[state])
    return family


def _dead_letters(parked: Tally[str]) -> Metric:
    family = GaugeMetricFamily(
        "fabric_dead_letters",
        "Parked jobs, jobs between two places, bad messages.",
        labels=("queue",),
    )
    for queue, count in parked.items():
        family.add_metric([queue], count)
    return family
