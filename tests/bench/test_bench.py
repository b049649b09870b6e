"""Every benchmark, for a moment: it starts what it needs, measures both sides, and says so in one line of JSON."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmarks.processes import ROOT, environ
from benchmarks.vllm_server import FOLDER as VLLM

from fabric.contracts.completion import Completion
from fabric.contracts.job import JobSpec, Measures, Usage
from fabric.ledger import Ledger, usage

RUN_S = 170


def bench(*arguments: str, within_s: float = RUN_S) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks", *arguments, "--json"]
    # Not `run`: what runs out of time is asked to stop what it has started, not killed.
    with subprocess.Popen(command, env=environ(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            said, complaints = process.communicate(timeout=within_s)
        except BaseException:
            process.send_signal(signal.SIGTERM)
            raise
    assert process.returncode == 0, complaints
    report: dict[str, Any] = json.loads(said.splitlines()[-1])
    assert {"name", "value", "unit", "direct", "ratio"} <= report.keys()
    assert report["value"] > 0
    return report


@pytest.mark.parametrize(
    ("name", "arguments", "unit"),
    [
        ("latency", ["--requests", "20"], "ms"),
        ("saturation", ["--seconds", "1", "--connections", "8"], "requests/s"),
        ("batch", ["--lines", "300", "--rounds", "1", "--celery-jobs", "50"], "lines/s"),
        ("inflight", ["--seconds", "0.5", "--rounds", "1"], "jobs/s"),
        ("efficiency", ["--seconds", "3", "--tokens", "8"], "tokens/s"),
    ],
)
@pytest.mark.timeout(RUN_S + 60)
def test_against_the_direct_way(name: str, arguments: list[str], unit: str) -> None:
    report = bench(name, *arguments)
    assert (report["name"], report["unit"]) == (name, unit)
    assert report["direct"] > 0
    assert report["ratio"] == pytest.approx(report["value"] / report["direct"], rel=1e-3)
    # Every process of the fabric was seen at work.
    assert {"api", "scheduler", "recorder", "valkey", "worker-cpu"} == report["cpu_ms_per_job"].keys()


@pytest.mark.skipif(not (VLLM / "made").exists(), reason=f"no vLLM in {VLLM}: ./scripts/get-vllm-cpu makes it")
@pytest.mark.timeout(600)
def test_against_a_real_vllm() -> None:
    report = bench("efficiency", "--engine", "vllm", "--seconds", "3", "--tokens", "8", within_s=540)
    assert (report["engine"], report["unit"]) == ("vllm", "tokens/s")
    assert report["direct"] > 0
    assert "worker-gpu" in report["cpu_ms_per_job"]


@pytest.mark.timeout(RUN_S + 60)
def test_four_workers_do_four_times_the_work() -> None:
    report = bench("scale", "--workers", "4", "--seconds", "2")
    assert report["steps"] == [1, 2, 4]
    first, _, last = report["rates"]
    # The goal is 0.95; this is a loaded machine and a short run.
    assert last > 2 * first


@pytest.mark.timeout(RUN_S + 60)
def test_prediction() -> None:
    """On a real llama.cpp: how far off is the machine's affair, that predictions rest on measurements isn't."""
    report = bench(
        "prediction", "--callers", "1", "--callers", "2", "--requests", "8", "--warmup", "10", "--depth", "1"
    )
    assert report["unit"] == "% wrong at p50"
    assert set(report["errors_p50"]) == set(report["errors_p90"]) == {"1", "2"}
    assert all(report["errors_p50"][many] <= report["errors_p90"][many] for many in ("1", "2"))


def test_decision() -> None:
    """There is no way to decide without the fabric."""
    report = bench("decision", "--seconds", "0.2")
    assert report["direct"] is report["ratio"] is None
    assert report["candidates"] == 20


def test_tracing() -> None:
    """All spans of every job come to the collector, and what isn't kept costs next to nothing."""
    pytest.importorskip("opentelemetry.sdk")
    report = bench("tracing", "--jobs", "500")
    assert report["spans_per_job"] == 5
    assert report["us_per_job"]["gateway, not kept"] < report["us_per_job"]["gateway, kept"]


def test_dispatch() -> None:
    report = bench("dispatch", "--jobs", "3000")
    assert (report["jobs"], report["ratio"]) == (3_000, None)
    assert report["value"] > 1_000


def test_plan() -> None:
    """The same seed, the same figures: and what is planned as a whole costs less."""
    report = bench("plan", "--lines", "200")
    assert report["ratio"] < 0.9
    assert len(report["cases"]) == 9
    assert all(case["plan"]["in_time"] >= 0.85 * case["lines"] for case in report["cases"])
    assert bench("plan", "--lines", "200")["cases"] == report["cases"]


def test_plan_of_recorded_answers(sqlite_ledger: str) -> None:
    ledger = Ledger(sqlite_ledger)
    spec = JobSpec("job_", "/v1/chat/completions", "m")
    done = [
        Completion(
            *(f"{n}-0", replace(spec, id=f"job_{n}"), "succeeded", 1, "d", "cpu", "w", 1, 2, 3, 4 + n),
            *(Measures(usage=Usage(100 + n, 50 + n)), None, None),
        )
        for n in range(60)
    ]
    ledger.write(usage.add, done)
    ledger.close()
    report = bench("plan", "--lines", "60", "--ledger", sqlite_ledger)
    assert [case["lines"] for case in report["cases"]] == [60, 60, 60]
    assert report["cases"][0]["case"] == "recorded, ample"


def test_the_script() -> None:
    """``scripts/bench`` as a user calls it: from anywhere, with a table first and the JSON last."""
    command = [str(ROOT / "scripts" / "bench"), "decision", "--seconds", "0.1", "--json"]
    said = subprocess.run(command, cwd=Path("/"), capture_output=True, text=True, timeout=RUN_S, check=True).stdout
    assert "budget <= 100" in said
    assert json.loads(said.splitlines()[-1])["name"] == "decision"


def test_an_unknown_benchmark_is_refused() -> None:
    command = [sys.executable, "-m", "benchmarks", "throughput"]
    refused = subprocess.run(command, env=environ(), capture_output=True, text=True, timeout=RUN_S)
    assert refused.returncode == 2
    assert "throughput" in refused.stderr
