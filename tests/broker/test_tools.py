"""Celery's own tools on a running fabric: they see ids and names, never a prompt."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from fabric.contracts.job import JobState
from fabric.store import transitions

if TYPE_CHECKING:
    from tests.broker.conftest import Fabric, Start

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


def celery(fabric: Fabric, *command: str) -> dict[str, Any]:
    """What the workers answer."""
    done = subprocess.run(
        [*CELERY, *command, "--json", "--timeout", "10"],
        env=fabric.environ,
        cwd=fabric.folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    answer: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    return answer


def test_inspect_finds_the_worker(fabric: Fabric) -> None:
    ((name, pong),) = celery(fabric, "inspect", "ping").items()
    assert name.startswith("toolbox-")
    assert pong == {"ok": "pong"}


def test_inspect_shows_what_is_being_claimed_and_from_where(fabric: Fabric) -> None:
    assert list(celery(fabric, "inspect", "active").values()) == [[]]
    (queues,) = celery(fabric, "inspect", "active_queues").values()
    assert {queue["name"] for queue in queues} == {"fabric.cpu.quick", "fabric.cpu.stuck"}


class TestFlower:
    @pytest.fixture(scope="class")
    def get(self, fabric: Fabric, request: pytest.FixtureRequest) -> Iterator[Callable[[str], str]]:
        fabric.settings["FLOWER_UNAUTHENTICATED_API"] = "true"
        flower = fabric.run(*CELERY, "flower", "--address=127.0.0.1", "--port=0", name="flower")
        ports: list[str] = []

        def listening() -> bool:
            ports.extend(re.findall(r"http://127\.0\.0\.1:(\d+)", flower.said))
            return bool(ports) and ports[0] != "0"

        def get(path: str) -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{ports[0]}{path}", timeout=30) as answer:
                text: str = answer.read().decode()
            return text

        fabric.until(listening)
        yield get
        flower.kill()

    def test_lists_workers_and_tasks_and_holds_no_prompt(self, fabric: Fabric, get: Callable[[str], str]) -> None:
        fabric.until(lambda: any(name.startswith("toolbox-") for name in json.loads(get("/api/workers?refresh=1"))))
        quick = fabric.accept("quick", 3, content=CANARY)
        (stuck,) = fabric.accept("stuck", content=CANARY)
        fabric.ended(quick)
        fabric.until(lambda: fabric.record(stuck).state is JobState.RUNNING)

        def tasks() -> dict[str, Any]:
            found: dict[str, Any] = json.loads(get("/api/tasks?limit=100"))
            return found

        fabric.until(lambda: any(stuck in task["kwargs"] for task in tasks().values()))
        shown = tasks()
        fabric.until(lambda: {task["state"] for task in tasks().values()} == {"SUCCESS"})
        assert {task["name"] for task in shown.values()} == {"fabric.run"}
        mentioned = " ".join(task["kwargs"] for task in shown.values())
        assert all(job in mentioned for job in (*quick, stuck))
        pages = ["/", "/workers", "/tasks", "/broker", "/api/workers?refresh=1", "/api/tasks?limit=100", "/metrics"]
        (worker,) = json.loads(get("/api/workers"))
        pages.append(f"/worker/{worker}")
        pages += [f"/task/{task}" for task in shown]
        pages += [f"/api/task/info/{task}" for task in shown]
        for page in pages:
            assert CANARY not in get(page), page
        fabric.store(transitions.cancel([stuck]))
        fabric.ended([stuck])


def test_shutdown_by_remote_control_drains(fabric: Fabric) -> None:
    worker = fabric.worker("other")
    (name,) = [name for name in celery(fabric, "inspect", "ping") if name.startswith("other-")]
    subprocess.run(
        [*CELERY, "control", "--destination", name, "shutdown"],
        env=fabric.environ,
        cwd=fabric.folder,
        capture_output=True,
        timeout=60,
    )
    assert worker.popen.wait(timeout=60) == 0
    assert "handed back 0 jobs" in worker.said
