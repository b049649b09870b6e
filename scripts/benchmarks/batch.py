"""How fast a batch is drained, against raw Celery with one message a job."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import httpx

from benchmarks.celery_noop import raw_celery
from benchmarks.command import benchmark
from benchmarks.fabric_up import FabricUp, fabric_up, mock_config
from benchmarks.processes import Void, rss_bytes
from benchmarks.questions import write_batch
from benchmarks.report import Budget, Report, Table
from benchmarks.stages import LedgerFile, cpu_ms, cpu_table

RATIO_BUDGET = 8.0
ACCEPT_LINES = 50_000
ACCEPT_BUDGET_S = 5.0
RSS_BUDGET_MB = 100.0
_SLOTS = 512
_WARMUP_LINES = 500
_LOOK_S = 0.1
_RSS_LOOK_S = 0.02


@dataclass(frozen=True, slots=True)
class Drained:
    """One batch, from its file to its output file. Seconds; all but the upload on the gateway's own clock."""

    lines: int
    upload_s: float
    validate_s: float  #: batch accepted -> every line checked
    run_s: float  #: every line checked -> every line answered
    write_s: float  #: every line answered -> output file written

    @property
    def whole_s(self) -> float:
        """From the acceptance of the batch to its completion."""
        return self.validate_s + self.run_s + self.write_s

    @property
    def accept_s(self) -> float:
        """From the first byte of the file to the last line checked."""
        return self.upload_s + self.validate_s


def run_batch(fabric: FabricUp, source: Path, lines: int) -> Drained:
    """
    Raises:
        Void: not every line was answered.
    """
    with httpx.Client(base_url=fabric.url, timeout=120, trust_env=False) as http:
        started = time.perf_counter()
        with source.open("rb") as file:
            uploaded = _ok(http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", file)}))
        upload_s = time.perf_counter() - started
        asked = {"input_file_id": uploaded["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        batch = _ok(http.post("/v1/batches", json=asked))
        while batch["status"] in ("validating", "in_progress", "finalizing"):
            time.sleep(_LOOK_S)
            batch = _ok(http.get(f"/v1/batches/{batch['id']}"))
        counts = batch["request_counts"]
        if batch["status"] != "completed" or counts["completed"] != lines:
            raise Void(f"the batch ended as {batch['status']}: {counts} {_first_error(http, batch['error_file_id'])}")
        written = _lines_of(http, batch["output_file_id"])
        if written != lines:
            raise Void(f"the output file has {written} lines instead of {lines}")
    created, checked, answered, completed = LedgerFile(fabric.data_dir).rows(
        "SELECT created_ms, in_progress_ms, finalizing_ms, completed_ms FROM batches WHERE id = ?", batch["id"]
    )[0]
    seconds = ((checked - created) / 1000, (answered - checked) / 1000, (completed - answered) / 1000)
    return Drained(lines, upload_s, *seconds)


def _ok(answer: httpx.Response) -> dict[str, Any]:
    if answer.status_code != 200:
        raise Void(f"{answer.request.method} {answer.request.url.path}: {answer.status_code} {answer.text[:300]}")
    values: dict[str, Any] = answer.json()
    return values


def _first_error(http: httpx.Client, file_id: str | None) -> str:
    return http.get(f"/v1/files/{file_id}/content").text.partition("\n")[0][:500] if file_id else ""


def _lines_of(http: httpx.Client, file_id: str) -> int:
    with http.stream("GET", f"/v1/files/{file_id}/content") as answer:
        return sum(chunk.count(b"\n") for chunk in answer.iter_bytes())


@contextmanager
def batch_file(lines: int) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fabric-bench-") as folder:
        path = Path(folder) / "in.jsonl"
        write_batch(path, "mock", lines)
        yield path


class Growth:
    """How far a process's resident memory rose above where it began, in megabytes."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._first = self._most = rss_bytes(pid)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Growth:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def mb(self) -> float:
        return (self._most - self._first) / 1e6

    def _watch(self) -> None:
        while not self._stop.wait(_RSS_LOOK_S):
            self._most = max(self._most, rss_bytes(self._pid))


def measure(lines: int, rounds: int, celery_jobs: int) -> Report:
    drains: list[Drained] = []
    celery_s: list[float] = []
    with (
        batch_file(_WARMUP_LINES) as small,
        batch_file(lines) as source,
        raw_celery() as celery,
        fabric_up(mock_config(slots=_SLOTS)) as fabric,
    ):
        run_batch(fabric, small, _WARMUP_LINES)
        before = fabric.cpu_s()
        with Growth(fabric.pid("api")) as gateway, Growth(fabric.pid("recorder")) as recorder:
            celery_s.append(celery.drain(celery_jobs))
            for _ in range(rounds):
                drains.append(run_batch(fabric, source, lines))
                celery_s.append(celery.drain(celery_jobs))
        used = fabric.cpu_since(before)
    value = rounds * lines / sum(drained.whole_s for drained in drains)
    direct = len(celery_s) * celery_jobs / sum(celery_s)
    accept_s = sum(drained.accept_s for drained in drains) / rounds
    budgets = [
        Budget("lines/s over raw Celery's jobs/s", RATIO_BUDGET, value / direct, "x", at_least=True),
        Budget("gateway memory growth", RSS_BUDGET_MB, gateway.mb, "MB"),
    ]
    if lines == ACCEPT_LINES:
        budgets.append(Budget(f"upload and check {ACCEPT_LINES:,} lines", ACCEPT_BUDGET_S, accept_s, "s"))
    run_rate = rounds * lines / sum(drained.run_s for drained in drains)
    return Report(
        "batch",
        value,
        "lines/s",
        direct,
        budgets,
        [
            Table(
                (f"{lines:,} lines, s", *(f"round {n + 1}" for n in range(rounds))),
                [
                    ("upload", *(d.upload_s for d in drains)),
                    ("check every line", *(d.validate_s for d in drains)),
                    ("run every line", *(d.run_s for d in drains)),
                    ("write the output file", *(d.write_s for d in drains)),
                    ("lines/s, batch accepted -> completed", *(lines / d.whole_s for d in drains)),
                    ("raw Celery before it, jobs/s", *(celery_jobs / seconds for seconds in celery_s[:-1])),
                    ("raw Celery after it, jobs/s", *(celery_jobs / seconds for seconds in celery_s[1:])),
                ],
            ),
            cpu_table(used, rounds * lines),
        ],
        {
            "lines": lines,
            "accept_s": accept_s,
            "run_lines_per_s": run_rate,
            "gateway_growth_mb": gateway.mb,
            "recorder_growth_mb": recorder.mb,
            "cpu_ms_per_job": cpu_ms(used, rounds * lines),
        },
    )


@benchmark
@click.option("--lines", default=20_000, show_default=True, help="Lines of the batch.")
@click.option(
    "--rounds", default=3, show_default=True, help="Batches; before and after each there is a run of raw Celery."
)
@click.option("--celery-jobs", default=1_000, show_default=True, help="Jobs of one run of raw Celery.")
def command(lines: int, rounds: int, celery_jobs: int) -> Report:
    """Lines a second of a batch, from its acceptance to its completion, against raw Celery's no-op jobs."""
    return measure(lines, rounds, celery_jobs)
