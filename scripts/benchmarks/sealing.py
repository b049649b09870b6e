"""What it takes to seal and open content: AES-256-GCM and a data key of its own for each."""

from __future__ import annotations

import os
import secrets
import time

import click

from benchmarks.command import benchmark
from benchmarks.report import Budget, Report, Table, percentile
from fabric.contracts.sealed import Seals, about
from fabric.contracts.secret import Secrets

BUDGET_US = 50.0
SIZES = (256, 4_096, 65_536)
_BUDGET_SIZE = 4_096
#: Pairs that are timed together: reading the clock takes a part of one.
_TOGETHER = 50


def measure(seconds: float) -> Report:
    seals = Seals(Secrets([secrets.token_hex(32)]))
    of = about("line", "batch_1", "1")
    contents = {size: os.urandom(size) for size in SIZES}
    times: dict[int, list[float]] = {size: [] for size in SIZES}
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        for size, content in contents.items():
            started = time.perf_counter()
            for _ in range(_TOGETHER):
                seals.open(seals.seal(content, of), of)
            times[size].append((time.perf_counter() - started) / _TOGETHER * 1e6)
    medians = {size: percentile(sorted(taken), 0.5) for size, taken in times.items()}
    rows = [(f"{size:,}", medians[size], percentile(sorted(taken), 0.99)) for size, taken in times.items()]
    return Report(
        "sealing",
        medians[_BUDGET_SIZE],
        "us",
        None,
        [Budget("4 KB sealed and opened", BUDGET_US, medians[_BUDGET_SIZE], "us")],
        [Table(("bytes", "median us", "p99 us"), rows)],
        {"median_us": {str(size): median for size, median in medians.items()}},
    )


@benchmark
@click.option("--seconds", default=3.0, show_default=True, help="How long to measure.")
def command(seconds: float) -> Report:
    """Microseconds to seal content and open it again."""
    return measure(seconds)
