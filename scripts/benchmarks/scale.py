"""Whether twice the workers do twice the work."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import click
import httpx

from benchmarks.batch import batch_file, run_batch
from benchmarks.command import benchmark
from benchmarks.fabric_up import FabricUp, fabric_up, mock_config
from benchmarks.inflight import bare, steady_rate
from benchmarks.processes import Void, module, until
from benchmarks.report import Budget, Report, Table
from benchmarks.stages import LedgerFile, cpu_ms

#: So slow that eight workers are far from what two cores can do: 32 jobs/s each, 256/s in all.
SLOTS = 16
LATENCY_MS = 500
BUDGET = 0.95
IDEAL = SLOTS / (LATENCY_MS / 1000)
#: Full sets of slots at either end that don't count. Workers don't all get their first and their last job together.
_EDGE = 3
_START_S = 120.0


def _steps(most: int) -> list[int]:
    """1, 2, 4, … and ``most``."""
    steps = [2**power for power in range(most.bit_length())]
    return steps if steps[-1] == most else [*steps, most]


def _present(fabric: FabricUp) -> int:
    return len(httpx.get(f"{fabric.url}/v1/workers", timeout=30, trust_env=False).json()["data"])


def _join(stack: ExitStack, fabric: FabricUp, number: int) -> None:
    """One more worker, as it would be started on another machine. It leaves with ``stack``."""
    name = f"more-{number}"
    variables = {"FABRIC_DATA_DIR": str(fabric.data_dir), "FABRIC_CONFIG": str(fabric.config)}
    log = fabric.data_dir / f"{name}.log"
    stack.enter_context(module("fabric.cli", "worker", "cpu", "--name", name, variables=variables, log=log))
    until(lambda: _present(fabric) == number, within_s=_START_S, missing=f"there are no {number} workers")


def measure(workers: int, seconds: float) -> Report:
    turns = max(1, round(seconds * 1000 / LATENCY_MS)) + 2 * _EDGE
    alone = steady_rate(asyncio.run(bare(turns * SLOTS, SLOTS, LATENCY_MS)), SLOTS, _EDGE)
    steps = _steps(workers)
    rates: list[float] = []
    cpu: list[float] = []
    with ExitStack() as stack:
        fabric = stack.enter_context(fabric_up(mock_config(slots=SLOTS, latency_ms=LATENCY_MS)))
        ledger = LedgerFile(fabric.data_dir)
        present = 1
        for count in steps:
            while present < count:
                present += 1
                _join(stack, fabric, present)
            jobs = turns * SLOTS * count
            before = fabric.cpu_s()
            with batch_file(jobs) as source:
                run_batch(fabric, source, jobs)
            used = cpu_ms(fabric.cpu_since(before), jobs)
            cpu.append(sum(ms for name, ms in used.items() if name != "worker-cpu"))
            batch_id = ledger.rows("SELECT id FROM batches ORDER BY created_ms DESC LIMIT 1")[0][0]
            rows = ledger.rows("SELECT finished_ms, worker FROM usage WHERE batch_id = ?", batch_id)
            if len({worker for _, worker in rows}) != count:
                raise Void(f"not all of {count} workers had jobs")
            rates.append(steady_rate([row[0] for row in rows], SLOTS * count, _EDGE))
    of_ideal = [rate / (count * IDEAL) for rate, count in zip(rates, steps, strict=True)]
    return Report(
        "scale",
        rates[-1],
        "jobs/s",
        workers * alone,
        [
            Budget(
                f"of the ideal {count * IDEAL:,.0f} jobs/s with {count} workers", BUDGET * 100, share * 100, "%", True
            )
            for count, share in zip(steps, of_ideal, strict=True)
        ],
        [
            Table(
                (f"workers, each {SLOTS} slots of {LATENCY_MS} ms", *map(str, steps)),
                [
                    ("engines alone, jobs/s", *(count * alone for count in steps)),
                    ("fabric, slots full, jobs/s", *rates),
                    ("of the ideal, %", *(share * 100 for share in of_ideal)),
                    ("processor time a job without the workers', ms", *cpu),
                ],
            )
        ],
        {"workers": workers, "rates": rates, "steps": steps, "of_ideal": of_ideal},
    )


@benchmark
@click.option("--workers", default=8, show_default=True, type=click.IntRange(1, 64), help="Workers at the end.")
@click.option("--seconds", default=15.0, show_default=True, help="How long to keep the slots full, with each number.")
def command(workers: int, seconds: float) -> Report:
    """Jobs a second with 1, 2, 4, 8 worker processes, where only their engines' slots are the limit."""
    return measure(workers, seconds)
