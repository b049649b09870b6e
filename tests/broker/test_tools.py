"""Celery's own tools on a running fabric: they see ids and names, never a prompt."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from fabric.contracts.job import JobState
from fabric.store import transitions

if TYPE_CHECKING:
    from tests.broker.conftest import Fabric, Process, Start

CANARY = "the canary sings at midnight"
CELERY = (sys.executable, "-m", "celery", "-A", "fabric.broker")


@pytest.fixture(scope="module")
def fabric(start_fabric: Start) -> Iterator[Fabric]:
    options = {"latency_ms": 600_000}
    fabric = start_fabric("valkey", {"quick": {}, "stuck": {"options": options}}, FABRIC_DRAIN_S="0.2")
    fabric.scheduler()
    fabric.worker("toolbox")
    yield fabric
    fabric.close()


def name_of(fabric: Fabric, worker: Process, name: str) -> str:
    """How Celery's tools call it."""
    info = fabric.info(worker)
    assert info is not None
    return f"{name}-{info.id[-6:]}@{info.hostname}"


def celery(fabric: Fabric, command: str, what: str, worker: str) -> Any:
    """What that worker answers."""
    done = subprocess.run(
        [*CELERY, command, what, "--destination", worker, "--json", "--timeout", "20"],
        env=fabric.environ,
        cwd=fabric.folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout[done.stdout.index("{") :])[worker]


def test_inspect_finds_the_worker_and_what_it_does(fabric: Fabric) -> None:
    worker = name_of(fabric, fabric.processes[1], "toolbox")
    assert celery(fabric, "inspect", "ping", worker) == {"ok": "pong"}
    assert celery(fabric, "inspect", "active", worker) == []
    queues = celery(fabric, "inspect", "active_queues", worker)
    assert {queue["name"] for queue in queues} == {"fabric.cpu.quick", "fabric.cpu.stuck"}


@pytest.fixture
def get(fabric: Fabric) -> Iterator[Callable[[str], str]]:
    """Gets a page of Flower's; a worker that is slow to answer isn't on its page at first."""
    fabric.settings["FLOWER_UNAUTHENTICATED_API"] = "true"
    flower = fabric.run(*CELERY, "flower", "--address=127.0.0.1", "--port=0", name="flower")
    addresses: list[str] = []
    pages: dict[str, str] = {}

    def listening() -> bool:
        addresses.extend(re.findall(r"http://127\.0\.0\.1:[1-9]\d*", flower.said))
        return bool(addresses)

    def answers(path: str) -> bool:
        with suppress(urllib.error.HTTPError), urllib.request.urlopen(addresses[0] + path, timeout=30) as answer:
            pages[path] = answer.read().decode()
            return True
        return False

    def get(path: str) -> str:
        fabric.until(lambda: answers(path))
        return pages[path]

    fabric.until(listening)
    yield get
    flower.kill()


def test_flower_lists_workers_and_tasks_and_holds_no_prompt(fabric: Fabric, get: Callable[[str], str]) -> None:
    worker = name_of(fabric, fabric.processes[1], "toolbox")
    fabric.until(lambda: worker in json.loads(get("/api/workers?refresh=1")))
    quick = fabric.accept("quick", 3, content=CANARY)
    (stuck,) = fabric.accept("stuck", content=CANARY)
    fabric.ended(quick)
    fabric.until(lambda: fabric.record(stuck).state is JobState.RUNNING)

    def tasks() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(get("/api/tasks?limit=100"))
        return found

    def mentioned() -> str:
        return " ".join(task["kwargs"] for task in tasks().values())

    fabric.until(lambda: all(job in mentioned() for job in (*quick, stuck)))
    fabric.until(lambda: {task["state"] for task in tasks().values()} == {"SUCCESS"})
    assert {task["name"] for task in tasks().values()} == {"fabric.run"}
    pages = ["/", "/workers", "/tasks", "/broker", "/api/workers?refresh=1", "/api/tasks?limit=100", "/metrics"]
    pages.append(f"/worker/{worker}")
    pages += [f"{page}/{task}" for task in tasks() for page in ("/task", "/api/task/info")]
    for page in pages:
        assert CANARY not in get(page), page
    fabric.store(transitions.cancel([stuck]))
    fabric.ended([stuck])


def test_shutdown_by_remote_control_drains(fabric: Fabric) -> None:
    worker = fabric.worker("other")
    subprocess.run(
        [*CELERY, "control", "shutdown", "--destination", name_of(fabric, worker, "other"), "--timeout", "1"],
        env=fabric.environ,
        cwd=fabric.folder,
        capture_output=True,
        timeout=60,
    )
    assert worker.popen.wait(timeout=60) == 0
    assert "handed back 0 jobs" in worker.said
