"""The short form: a whole fabric under load, some seconds of faults on each transport, and all laws afterwards.

``scripts/chaos`` is the long one. Laws about time are for it alone: this may run on a machine that is busy.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from storm import laws, report
from storm.plan import Fault, Transport
from storm.run import Result, run

SECONDS = 10.0
PLANS: dict[Transport, tuple[Fault, ...]] = {
    "valkey": (
        Fault(0.5, "duplicates", "queues", 8.0, False),
        Fault(1.0, "bad-messages", "queues", 0.0, False),
        Fault(2.0, "kill-worker", "worker-gpu-1", 0.0, False),
        Fault(3.0, "kill-store", "valkey", 0.3, False),
        Fault(4.0, "engine-crash", "cloud", 0.5, False),
        Fault(5.0, "kill-process", "scheduler-1", 0.0, False),
        Fault(6.0, "no-memory", "valkey", 1.0, False),
        Fault(7.0, "cut", "recorder-store", 1.0, False),
        Fault(8.0, "kill-process", "api", 0.0, False),
    ),
    "rabbitmq": (
        Fault(0.5, "duplicates", "queues", 8.0, False),
        Fault(1.0, "bad-messages", "queues", 0.0, False),
        Fault(2.0, "kill-worker", "worker-cpu-1", 0.0, False),
        Fault(3.0, "cut-broker", "worker-gpu-2-broker", 1.0, False),
        Fault(4.0, "kill-broker", "rabbitmq", 0.3, False),
        Fault(5.0, "kill-process", "recorder", 0.0, False),
        Fault(7.0, "black-hole", "worker-cloud-engine", 1.5, False),
    ),
}
UNTIMED = [law for law in laws.LAWS if law not in laws.TIMED]


@pytest.fixture
def folder() -> Iterator[Path]:
    # A unix socket's path is limited: pytest's own folders can be too deep.
    path = Path(tempfile.mkdtemp(prefix="storm-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("transport", ["valkey", "rabbitmq"])
def test_the_laws_hold_in_a_storm(transport: Transport, folder: Path) -> None:
    installed = Path("/usr/lib/rabbitmq/bin/rabbitmq-server").exists() or shutil.which("rabbitmq-server")
    if transport == "rabbitmq" and not installed:
        pytest.skip("RabbitMQ isn't installed: apt-get install rabbitmq-server")
    result: Result = asyncio.run(run(folder, transport, PLANS[transport], SECONDS, print))
    broken = laws.broken(result.evidence, UNTIMED)
    assert not broken, report.text(report.figures(result, broken))
    assert len(result.inflicted) == len(PLANS[transport])
    assert len({row.job_id for row in result.evidence.rows}) > 50
    assert any(row.state == "succeeded" for row in result.evidence.rows)
    assert any(row.deployment == "patient-batch" for row in result.evidence.rows)
    assert result.evidence.replayed
    assert any(event.kept for event in result.evidence.events)
