"""How many requests a second pass through one fabric when more are always waiting."""

from __future__ import annotations

import click

from benchmarks.bare_server import PATH, bare_server
from benchmarks.client import client, total
from benchmarks.command import benchmark
from benchmarks.fabric_up import fabric_up, mock_config
from benchmarks.load import Plan
from benchmarks.questions import bodies
from benchmarks.report import Report, Table, percentile
from benchmarks.stages import cpu_ms, cpu_table

_ROUND_S = 2.0
_WARMUP_S = 0.3


def measure(seconds: float, connections: int) -> Report:
    rounds = max(1, round(seconds / _ROUND_S))
    busy: list[float] = []
    with client() as load, bare_server() as bare, fabric_up(mock_config(slots=64)) as fabric:
        asked = bodies("mock")
        direct, through = (
            Plan(address, PATH, asked, connections, warmup_s=_WARMUP_S, seconds=seconds / rounds)
            for address in (bare, fabric.address)
        )
        load.run(through)
        before = fabric.cpu_s()
        samples = []
        for _ in range(rounds):
            samples.append((load.run(direct), load.run(through)))
            busy.append(load.busy)
        used = fabric.cpu_since(before)
    alone, whole = (total(side) for side in zip(*samples, strict=True))
    rates = alone.answers / alone.seconds, whole.answers / whole.seconds
    p50, p99 = ([percentile(s.latencies_s, share) * 1000 for s in (alone, whole)] for share in (0.5, 0.99))
    rows = [("requests/s", *rates), ("p50, ms", *p50), ("p99, ms", *p99)]
    # The unmeasured answers of the warm-ups took processor time, too.
    jobs = round(whole.answers * (1 + rounds * _WARMUP_S / whole.seconds))
    return Report(
        "saturation",
        rates[1],
        "requests/s",
        rates[0],
        (),
        [Table((f"{connections} connections", "direct", "fabric"), rows), cpu_table(used, jobs)],
        {
            "connections": connections,
            "p50_ms": p50[1],
            "p99_ms": p99[1],
            "client_busy": max(busy),
            "cpu_ms_per_job": cpu_ms(used, jobs),
        },
    )


@benchmark
@click.option("--seconds", default=10.0, show_default=True, help="How long to measure each side.")
@click.option("--connections", default=32, show_default=True, help="Requests in flight at any time.")
def command(seconds: float, connections: int) -> Report:
    """Requests a second through the fabric, with a mock engine that answers at once."""
    return measure(seconds, connections)
