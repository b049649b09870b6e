"""How long the scheduler takes to decide where a job goes, with 20 candidates."""

from __future__ import annotations

import time

import click

from benchmarks.command import benchmark
from benchmarks.report import Budget, Report, Table, percentile
from fabric.contracts.catalog import TIERS, Catalog, Deployment, Model, Price
from fabric.contracts.experience import AnswerLength, Experience, Pace, survival
from fabric.contracts.job import JobSpec
from fabric.routing import DeploymentState, World, decide, policy_hash

CANDIDATES = 20
BUDGET_US = 100.0
#: Decisions that are timed together: reading the clock takes a part of one.
_TOGETHER = 50

_JOBS = {
    "nothing excluded": JobSpec("job_1", "/v1/chat/completions", "m", privacy="public", needs=("chat",)),
    "cheapest, with a cap": JobSpec(
        "job_2",
        "/v1/chat/completions",
        "m",
        privacy="public",
        policy="cheapest",
        needs=("chat",),
        prompt_tokens=2_000,
        max_output_tokens=1_000,
        max_cost_usd=0.05,
    ),
    "the cloud excluded": JobSpec("job_3", "/v1/chat/completions", "m", privacy="restricted", needs=("chat",)),
    "all excluded": JobSpec("job_4", "/v1/chat/completions", "m", needs=("vision",)),
}


def catalog() -> Catalog:
    deployments = [
        Deployment(
            name=f"d{n}",
            engine="mock",
            tier=TIERS[n % len(TIERS)],
            context_window=8_192,
            price=Price(input_per_million=0.1 * n, output_per_million=0.4 * n),
            data_policy="zero_retention",
        )
        for n in range(CANDIDATES)
    ]
    return Catalog(models=(Model(name="m", deployments=tuple(deployments)),))


def world(catalog: Catalog) -> World:
    """Every place has a worker and a past, so that a decision has all that it may have to do."""
    endpoint = "/v1/chat/completions"
    now_ms = 1_000_000
    pace = Pace(
        50, now_ms, engine_s=2.0, base_s=0.1, per_prompt_token_s=0.001, per_output_token_s=0.01, first_tokens=50
    )
    experience = Experience(
        {(endpoint, name): pace for name in catalog.by_deployment},
        {(endpoint, "m"): AnswerLength(50, now_ms, 200.0, survival([1.0] * 20 + [0.0] * 13, [1.0] * 33))},
    )
    return World({name: DeploymentState(1, 8, 16, 9) for name in catalog.by_deployment}, experience, now_ms)


def measure(seconds: float) -> Report:
    places = catalog()
    hash_, now = policy_hash(places), world(places)
    times: dict[str, list[float]] = {name: [] for name in _JOBS}
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        for name, spec in _JOBS.items():
            started = time.perf_counter()
            for _ in range(_TOGETHER):
                decide(spec, places, hash_, now)
            times[name].append((time.perf_counter() - started) / _TOGETHER * 1e6)
    medians = {name: percentile(sorted(taken), 0.5) for name, taken in times.items()}
    slowest = max(medians.values())
    rows = [(name, medians[name], percentile(sorted(taken), 0.99)) for name, taken in times.items()]
    return Report(
        "decision",
        slowest,
        "us",
        None,
        [Budget(f"a decision with {CANDIDATES} candidates", BUDGET_US, slowest, "us")],
        [Table(("kind of job", "median us", "p99 us"), rows)],
        {"candidates": CANDIDATES, "median_us": medians},
    )


@benchmark
@click.option("--seconds", default=4.0, show_default=True, help="How long to measure.")
def command(seconds: float) -> Report:
    """Microseconds for one routing decision with 20 candidates."""
    return measure(seconds)
