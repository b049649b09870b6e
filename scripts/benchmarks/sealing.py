"""What sealing costs: a job on its way, prompt and answer sealed and opened, and content at rest."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable

import click

from benchmarks.command import benchmark
from benchmarks.report import Budget, Report, Table, percentile
from fabric.contracts.job import JobSpec
from fabric.contracts.job_seals import HomeSeals, ReadingZones, WorkerSeals
from fabric.contracts.sealed import Seals, about
from fabric.contracts.secret import Secrets
from fabric.contracts.zones import WorkerKeys

BUDGET_US = 50.0
SIZES = (256, 4_096, 65_536)
_BUDGET_SIZE = 4_096
#: That are timed together: reading the clock takes a part of one.
_TOGETHER = 50


class _Job:
    """All that is sealed and opened of one job, its prompt and its answer of the same size."""

    def __init__(self, held: Secrets) -> None:
        self._home = HomeSeals(held)
        self._worker = WorkerSeals(WorkerKeys.of(held, ["local"]))
        self._spec = JobSpec("job_1", "/v1/chat/completions", "assistant")
        self._zones = ReadingZones(frozenset({"local"}), frozenset({"cloud"}))

    def __call__(self, content: bytes) -> None:
        spec = self._spec
        prompt = self._worker.request(spec, self._home.payload(spec, content, self._zones))
        self._home.answer(spec.tenant, spec.id, self._worker.answer(spec, prompt))


def _at_rest(held: Secrets) -> Callable[[bytes], object]:
    seals, of = Seals(held), about("line", "batch_1", "1")
    return lambda content: seals.open(seals.seal(content, of), of)


def measure(seconds: float) -> Report:
    held = Secrets([secrets.token_hex(32)])
    works: dict[str, Callable[[bytes], object]] = {"a job": _Job(held), "at rest": _at_rest(held)}
    contents = {size: os.urandom(size) for size in SIZES}
    times: dict[tuple[str, int], list[float]] = {(name, size): [] for name in works for size in SIZES}
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        for name, work in works.items():
            for size, content in contents.items():
                started = time.perf_counter()
                for _ in range(_TOGETHER):
                    work(content)
                times[name, size].append((time.perf_counter() - started) / _TOGETHER * 1e6)
    medians = {key: percentile(sorted(taken), 0.5) for key, taken in times.items()}
    rows = [
        (name, f"{size:,}", medians[name, size], percentile(sorted(taken), 0.99))
        for (name, size), taken in times.items()
    ]
    budgets = [Budget(f"{name}, 4 KB", BUDGET_US, medians[name, _BUDGET_SIZE], "us") for name in works]
    return Report(
        "sealing",
        medians["a job", _BUDGET_SIZE],
        "us",
        None,
        budgets,
        [Table(("what", "bytes", "median us", "p99 us"), rows)],
        {"median_us": {f"{name}, {size}": median for (name, size), median in medians.items()}},
    )


@benchmark
@click.option("--seconds", default=3.0, show_default=True, help="How long to measure.")
def command(seconds: float) -> Report:
    """Microseconds to seal content and open it again."""
    return measure(seconds)
