"""What the fabric adds to one request that has the machine to itself."""

from __future__ import annotations

from dataclasses import replace

import click

from benchmarks.bare_server import PATH, bare_server
from benchmarks.client import client, total
from benchmarks.command import benchmark
from benchmarks.fabric_up import fabric_up, mock_config
from benchmarks.load import Plan
from benchmarks.questions import bodies
from benchmarks.report import Budget, Report, Table, percentile
from benchmarks.stages import LedgerFile, cpu_ms, cpu_table

P50_BUDGET_MS = 5.0
P99_BUDGET_MS = 15.0
#: Requests of one side before it is the other's turn: a noisy neighbour meets both.
_ROUND = 100
_WARMUP = 100


def measure(requests: int) -> Report:
    rounds = max(1, requests // _ROUND)
    each = requests // rounds
    with client() as load, bare_server() as bare, fabric_up(mock_config(slots=64)) as fabric:
        asked = bodies("mock")
        direct, through = (Plan(address, PATH, asked, requests=each) for address in (bare, fabric.address))
        for plan in (direct, through):
            load.run(replace(plan, requests=_WARMUP))
        before = fabric.cpu_s()
        samples = [(load.run(direct), load.run(through)) for _ in range(rounds)]
        used = fabric.cpu_since(before)
        ledger = LedgerFile(fabric.data_dir)
        ledger.wait_for_jobs(_WARMUP + rounds * each)
        stages = ledger.stages()
    alone, whole = (total(side).latencies_s for side in zip(*samples, strict=True))
    rows = [(f"p{share}", *_compared(alone, whole, share / 100)) for share in (50, 90, 99)]
    p50, p99 = rows[0], rows[-1]
    return Report(
        "latency",
        p50[2],
        "ms",
        p50[1],
        [Budget("added at p50", P50_BUDGET_MS, p50[3], "ms"), Budget("added at p99", P99_BUDGET_MS, p99[3], "ms")],
        [
            Table(("one request, ms", "direct", "fabric", "added"), rows),
            stages.table(whole_ms=sum(whole) / len(whole) * 1000),
            cpu_table(used, len(whole)),
        ],
        {
            "added_p50_ms": p50[3],
            "added_p99_ms": p99[3],
            "p50_ms": p50[2],
            "p99_ms": p99[2],
            "direct_p99_ms": p99[1],
            "requests": len(whole),
            "cpu_ms_per_job": cpu_ms(used, len(whole)),
        },
    )


def _compared(alone: list[float], whole: list[float], share: float) -> tuple[float, float, float]:
    direct_ms, fabric_ms = percentile(alone, share) * 1000, percentile(whole, share) * 1000
    return direct_ms, fabric_ms, fabric_ms - direct_ms


@benchmark
@click.option("--requests", default=2_000, show_default=True, help="Requests to each side.")
def command(requests: int) -> Report:
    """Milliseconds that the fabric adds to one request at a time, with a mock engine that answers at once."""
    return measure(requests)
