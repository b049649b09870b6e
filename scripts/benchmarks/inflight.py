"""Whether one worker process keeps 512 requests in flight all the time."""

from __future__ import annotations

import asyncio
import time

import click

from benchmarks.batch import batch_file, run_batch
from benchmarks.command import benchmark
from benchmarks.fabric_up import fabric_up, mock_config
from benchmarks.processes import Void
from benchmarks.questions import body
from benchmarks.report import Budget, Report, Table
from benchmarks.stages import LedgerFile, cpu_ms, cpu_table
from fabric.contracts.catalog import Deployment
from workers.engines.engine import Request
from workers.engines.mock import MockEngine

SLOTS = 512
LATENCY_MS = 500
BUDGET = 0.97
IDEAL = SLOTS / (LATENCY_MS / 1000)
#: Full sets of slots at either end that don't count: the first is still being dispatched, the last leaves slots empty.
_EDGE = 2


def steady_rate(finished_ms: list[int], slots: int = SLOTS, edge: int = _EDGE) -> float:
    """Jobs a second between the end of the first and the beginning of the last full sets of slots; ``edge``: how many.

    All slots turn over together, so only whole turns are compared: from a turn's last job to a later turn's last.
    """
    first, last = edge * slots - 1, len(finished_ms) // slots * slots - (edge - 1) * slots - 1
    if last <= first:
        raise Void(f"too few jobs: at least {2 * edge * slots} are needed")
    finished_ms = sorted(finished_ms)
    return (last - first) * 1000 / (finished_ms[last] - finished_ms[first])


async def bare(jobs: int, slots: int = SLOTS, latency_ms: int = LATENCY_MS) -> list[int]:
    """The same engine without a fabric: as many tasks as it has slots, each asking again at once."""
    options = {"latency_ms": latency_ms}
    engine = MockEngine(Deployment(name="mock", engine="mock", tier="cpu", slots=slots, options=options))
    request = Request("job_bare", "/v1/chat/completions", {"messages": body("mock")}, stream=False)
    finished: list[int] = []

    async def ask(times: int) -> None:
        for _ in range(times):
            await engine.run(request, lambda chunk: None)
            finished.append(time.time_ns() // 1_000_000)

    await asyncio.gather(*(ask(jobs // slots) for _ in range(slots)))
    return finished


def measure(seconds: float, rounds: int) -> Report:
    jobs = round(seconds * IDEAL / rounds / SLOTS) * SLOTS + 2 * _EDGE * SLOTS
    direct: list[float] = []
    rates: list[float] = []
    wholes: list[float] = []
    with batch_file(jobs) as source, fabric_up(mock_config(slots=SLOTS, latency_ms=LATENCY_MS)) as fabric:
        ledger = LedgerFile(fabric.data_dir)
        before = fabric.cpu_s()
        for _ in range(rounds):
            direct.append(steady_rate(asyncio.run(bare(jobs))))
            wholes.append(jobs / run_batch(fabric, source, jobs).run_s)
            batch_id = ledger.rows("SELECT id FROM batches ORDER BY created_ms DESC LIMIT 1")[0][0]
            finished = [row[0] for row in ledger.rows("SELECT finished_ms FROM usage WHERE batch_id = ?", batch_id)]
            rates.append(steady_rate(finished))
        used = fabric.cpu_since(before)
    value, alone = sum(rates) / rounds, sum(direct) / rounds
    share = value / IDEAL
    return Report(
        "inflight",
        value,
        "jobs/s",
        alone,
        [Budget(f"of the ideal {IDEAL:,.0f} jobs/s", BUDGET * 100, share * 100, "%", at_least=True)],
        [
            Table(
                (f"{SLOTS} slots, {LATENCY_MS} ms", *(f"round {n + 1}" for n in range(rounds))),
                [
                    ("engine alone, jobs/s", *direct),
                    ("fabric, slots full, jobs/s", *rates),
                    ("fabric, whole batch, jobs/s", *wholes),
                ],
            ),
            cpu_table(used, rounds * jobs),
        ],
        {
            "ideal": IDEAL,
            "of_ideal": share,
            "whole_batch": sum(wholes) / rounds,
            "jobs": rounds * jobs,
            "cpu_ms_per_job": cpu_ms(used, rounds * jobs),
        },
    )


@benchmark
@click.option("--seconds", default=20.0, show_default=True, help="How long to keep the slots full.")
@click.option("--rounds", default=2, show_default=True, help="Turns of the engine alone and of the fabric.")
def command(seconds: float, rounds: int) -> Report:
    """Jobs a second with 512 in flight in one worker process, with an engine that takes 500 ms for each."""
    return measure(seconds, rounds)
