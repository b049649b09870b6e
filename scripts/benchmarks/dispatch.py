"""How many jobs one scheduler routes and hands to tier queues in a second, when the workers take all of them."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from benchmarks.command import benchmark
from benchmarks.decision import catalog
from benchmarks.processes import Void, until
from benchmarks.report import Budget, Report, Table
from fabric.broker import Sender, make_app
from fabric.contracts.catalog import Catalog
from fabric.contracts.errors import Unavailable
from fabric.contracts.ids import new_id
from fabric.contracts.job import JobSpec
from fabric.contracts.secret import Secrets
from fabric.contracts.signed import Signer
from fabric.contracts.worker import WorkerInfo
from fabric.store import Store, transitions
from fabric.store.embedded import broker_url, server_command, url
from fabric.store.transitions import NewJob
from scheduler.loop import Loop

BUDGET_JOBS_S = 2_000.0
#: Who asks, so that lanes and shares have to be weighed.
_TENANTS = ("acme", "blue", "coral", "dune")
_ACCEPTED = 500
_START_S = 30.0


@contextmanager
def _stored() -> Iterator[tuple[Store, str]]:
    """A Valkey of its own, as ``fabric up`` starts it, and where its broker side is."""
    with tempfile.TemporaryDirectory(prefix="fabric-bench-", dir="/tmp") as folder:
        socket = Path(folder) / "s"
        server = subprocess.Popen(server_command(socket, Path(folder)), stdout=subprocess.DEVNULL)
        store = Store(url(socket))
        try:
            until(lambda: _answers(store), within_s=_START_S, missing="Valkey doesn't start")
            yield store, broker_url(socket)
        finally:
            store.close()
            server.terminate()
            server.wait()


def _answers(store: Store) -> bool:
    try:
        return bool(store(transitions.room()).workers is not None)
    except Unavailable:
        return False


def _fill(store: Store, jobs: int) -> None:
    specs = [
        JobSpec(
            id=new_id("job"),
            endpoint="/v1/chat/completions",
            model="m",
            tenant=_TENANTS[number % len(_TENANTS)],
            priority="batch",
            privacy="public",
            prompt_tokens=40 + number % 200,
            max_output_tokens=64,
        )
        for number in range(jobs)
    ]
    for start in range(0, jobs, _ACCEPTED):
        store(transitions.accept([NewJob(spec, b"sealed") for spec in specs[start : start + _ACCEPTED]]))


def _workers(store: Store, catalog: Catalog, jobs: int) -> None:
    """One for each tier that has room for all."""
    for tier in ("cpu", "gpu", "cloud"):
        room = {deployment.name: jobs for deployment in catalog.by_deployment.values() if deployment.tier == tier}
        info = WorkerInfo(f"worker_{tier}", tier, "host", 1, 0, room, room, dict.fromkeys(room, 0))
        store(transitions.heartbeat(info, []))


def measure(jobs: int) -> Report:
    places = catalog()
    with _stored() as (store, broker):
        _fill(store, jobs)
        loop = Loop(store, Sender(make_app(broker), Signer.of(Secrets.passing())), places)
        moved, rounds = 0, 0
        started, worked = time.perf_counter(), time.process_time()
        while moved < jobs:
            _workers(store, places, jobs)
            sent = loop.round()
            if not sent:
                raise Void(f"{jobs - moved} of {jobs} jobs found no place")
            moved += sent
            rounds += 1
        seconds, processor_s = time.perf_counter() - started, time.process_time() - worked
    return Report(
        "dispatch",
        jobs / seconds,
        "jobs/s",
        None,
        [Budget("jobs routed and dispatched in a second", BUDGET_JOBS_S, jobs / seconds, "jobs/s", at_least=True)],
        [
            Table(
                ("jobs", "rounds", "candidates each", "ms of this process's time a job"),
                [(jobs, rounds, len(places.by_deployment), processor_s / jobs * 1000)],
            )
        ],
        {"jobs": jobs, "rounds": rounds, "processor_ms_per_job": processor_s / jobs * 1000},
    )


@benchmark
@click.option("--jobs", default=20_000, show_default=True, help="Jobs that wait.")
def command(jobs: int) -> Report:
    """Jobs a second through one scheduler: taken from the backlog, decided, dispatched, sent in chunks."""
    return measure(jobs)
