"""How wrong the fabric is about when an answer will be there, on a real llama.cpp, once it has learned.

The prediction is that of the decision under which a job was sent; it came true when the job's answer was kept. Callers
wait for their answer before they ask again, each time something of another length.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import click
import httpx

from benchmarks.command import benchmark
from benchmarks.mixed import question, served
from benchmarks.processes import Void, until
from benchmarks.report import Budget, Report, Table, percentile

#: Of |predicted - actual| / actual.
BUDGETS = {0.5: 0.2, 0.9: 0.5}
#: Most tokens of an answer.
_TOKENS = (8, 16, 32, 64)
_LEARN_S = 60.0


@dataclass(frozen=True, slots=True)
class Prediction:
    """Seconds from the decision to the kept answer; ``measured``: it rested on what had been learned."""

    expected_s: float
    took_s: float
    measured: bool

    @property
    def error(self) -> float:
        return abs(self.expected_s - self.took_s) / self.took_s


def ask(http: httpx.Client, requests: int, seed: int) -> list[str]:
    """One after the other; answers the jobs' ids."""
    chance = random.Random(seed)
    ids = []
    for _ in range(requests):
        answer = http.post("/v1/chat/completions", json=question(chance, chance.choice(_TOKENS)))
        if answer.status_code != 200:
            raise Void(f"a request was answered with {answer.status_code}: {answer.text[:300]}")
        ids.append(answer.headers["x-fabric-job-id"])
    return ids


def asked_by(callers: int, http: httpx.Client, requests: int, seed: int) -> list[str]:
    each = max(1, requests // callers)
    with ThreadPoolExecutor(callers) as threads:
        found = threads.map(lambda caller: ask(http, each, 1_000 * seed + caller), range(callers))
        return [job_id for ids in found for job_id in ids]


def prediction(job: dict[str, Any]) -> Prediction | None:
    """``None``: it didn't run where it was decided, or more than once."""
    plan, attempts = job["decision"]["plan"], job["attempts"]
    place = next((one for one in plan if one["deployment"] == attempts[0]["deployment"]), None)
    if place is None or len(attempts) != 1 or place["expected_finish_s"] is None:
        return None
    took_s = (job["finished_ms"] - attempts[0]["dispatched_ms"]) / 1000
    return Prediction(place["expected_finish_s"], took_s, place["measured"]) if took_s > 0 else None


def _learned(http: httpx.Client) -> bool:
    """Whether the scheduler has read what there is to know: it does so now and then."""
    (job_id,) = ask(http, 1, seed=0)
    found = prediction(http.get(f"/v1/jobs/{job_id}").raise_for_status().json())
    return found is not None and found.measured


def measure(callers: Sequence[int], requests: int, warmup: int, depth: int) -> Report:
    rows: list[tuple[Any, ...]] = []
    steady: dict[int, list[float]] = {}
    with served(depth) as (_, http):
        for round_, many in enumerate(callers):
            asked_by(many, http, warmup, seed=2 * round_)
            until(lambda: _learned(http), within_s=_LEARN_S, missing="no prediction rests on measurements")
            ids = asked_by(many, http, requests, seed=2 * round_ + 1)
            jobs = [http.get(f"/v1/jobs/{job_id}").raise_for_status().json() for job_id in ids]
            known = [one for job in jobs if (one := prediction(job)) is not None and one.measured]
            if not known:
                raise Void("no prediction rested on measurements")
            errors = steady[many] = sorted(one.error for one in known)
            took = sorted(one.took_s for one in known)
            late = sum(one.took_s > one.expected_s for one in known) / len(known)
            shares = (percentile(errors, 0.5) * 100, percentile(errors, 0.9) * 100, late * 100)
            rows.append((many, len(known), percentile(took, 0.5), percentile(took, 0.9), *shares))
    alone = steady[callers[0]]
    return Report(
        "prediction",
        percentile(alone, 0.5) * 100,
        "% wrong at p50",
        None,
        [
            Budget(f"p{share * 100:.0f} of the error, {many} callers", most * 100, percentile(errors, share) * 100, "%")
            for many, errors in steady.items()
            for share, most in BUDGETS.items()
        ],
        [Table(("callers", "answers", "took p50, s", "p90, s", "error p50, %", "p90, %", "later than said, %"), rows)],
        {
            "callers": list(callers),
            "requests": requests,
            "depth": depth,
            "errors_p50": {str(many): percentile(errors, 0.5) for many, errors in steady.items()},
            "errors_p90": {str(many): percentile(errors, 0.9) for many, errors in steady.items()},
        },
    )


@benchmark
@click.option("--callers", default=(1, 4, 8), multiple=True, show_default=True, help="At once; the worker has 4 slots.")
@click.option("--requests", default=120, show_default=True, help="That are measured, for each number of callers.")
@click.option("--warmup", default=60, show_default=True, help="Before them, that aren't.")
@click.option("--depth", default=8, show_default=True, help="How many times as deep as the shipped model.")
def command(callers: tuple[int, ...], requests: int, warmup: int, depth: int) -> Report:
    """How wrong predictions of an answer's end are on a real llama.cpp worker, after it has learned."""
    return measure(callers, requests, warmup, depth)
