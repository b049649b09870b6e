"""A ledger with a year of made-up traffic, and how long its questions take.

    .venv/bin/python -m scripts.benchmarks.usage_data [--rows 5000000] [--url sqlite:///usage.sqlite3]

The rows go the recorder's way, through ``fabric.ledger.usage.add``, in chunks of 500.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from fabric.contracts.completion import Completion
from fabric.contracts.job import JobSpec, Measures, Usage
from fabric.ledger import Ledger, costs, upgrade, usage
from fabric.ledger.costs import Filter, Group
from fabric.ledger.sums import DAY_MS
from fabric.ledger.usage import Note

CHUNK = 500
TENANTS, KEYS_EACH, MODELS, DAYS = 20, 5, 6, 365
_END_MS = int(datetime(2026, 11, 1, tzinfo=UTC).timestamp() * 1000)
_PLACES = (("cpu", "cpu"), ("gpu", "gpu"), ("cloud", "cloud"), ("cloud", "cloud-eu"))
_NOTE = Note("0123456789abcdef", 0.001, 0.002, 0.004)

#: What is asked: a name, the filter, the groups.
QUESTIONS: tuple[tuple[str, Filter, tuple[Group, ...]], ...] = (
    ("a year by tenant, model and day", Filter(), ("tenant", "model", "day")),
    ("a year by tier and deployment", Filter(), ("tier", "deployment")),
    ("one tenant's year by day", Filter(tenant="tenant-07"), ("day",)),
    ("90 days, from one hour to another, by key", Filter(_END_MS - 90 * DAY_MS + 5_000_000, _END_MS - 1), ("key",)),
    ("a week by hour", Filter(_END_MS - 7 * DAY_MS), ("hour",)),
    ("a year by tag", Filter(), ("tag",)),
)


def traffic(rows: int, seed: int = 1) -> Iterator[list[Completion]]:
    """Completions in the order of their ends, in chunks."""
    chance = random.Random(seed)
    step = DAYS * DAY_MS / rows
    chunk = []
    for number in range(rows):
        at = int(_END_MS - DAYS * DAY_MS + number * step)
        chunk.append(_completion(number, at, chance))
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _completion(number: int, at: int, chance: random.Random) -> Completion:
    # As in life: few tenants make most of the requests.
    tenant = min(int(chance.expovariate(0.25)), TENANTS - 1)
    model = chance.randrange(MODELS)
    tier, place = chance.choice(_PLACES)
    read, written = chance.randrange(50, 4000), chance.randrange(1, 800)
    return Completion(
        entry_id="0-0",
        spec=JobSpec(
            id=f"job_{number:026}",
            endpoint="/v1/chat/completions",
            model=f"model-{model}",
            tenant=f"tenant-{tenant:02}",
            key_id=f"key-{tenant}-{chance.randrange(KEYS_EACH)}",
            tags=(f"team-{chance.randrange(8)}",) if chance.random() < 0.3 else (),
        ),
        state="succeeded" if chance.random() < 0.98 else "failed",
        attempt=1,
        deployment=f"model-{model}-{place}",
        tier=tier,
        worker="worker",
        accepted_ms=at - 3_000,
        dispatched_ms=at - 2_500,
        claimed_ms=at - 2_400,
        finished_ms=at,
        measures=Measures(engine_s=2.0, usage=Usage(read, written, read // 4), cost_usd=read * 1e-6 + written * 4e-6),
        result=None,
        error=None,
    )


def fill(ledger: Ledger, rows: int) -> None:
    for chunk in traffic(rows):
        ledger.write(usage.add, chunk, lambda _: _NOTE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--url", help="a ledger of its own [default: SQLite in a temporary folder]")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = asked.url or f"sqlite:///{Path(folder) / 'usage.sqlite3'}"
        upgrade(url)
        ledger = Ledger(url)
        began = time.perf_counter()
        fill(ledger, asked.rows)
        took = time.perf_counter() - began
        print(
            f"{asked.rows} rows recorded in {took:.0f} s: {took / asked.rows * 1e6:.0f} us a row, making them included"
        )
        for name, which, groups in QUESTIONS:
            began = time.perf_counter()
            rows, _ = ledger.read(costs.grouped, which, groups)
            print(f"{name}: {len(rows)} rows in {time.perf_counter() - began:.3f} s")
        ledger.close()


if __name__ == "__main__":
    main()
