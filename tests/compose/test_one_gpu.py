"""``one-gpu``: replicas that see the same GPUs take different ones, and give them back by ending, however they end."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="one-gpu runs in Linux containers only")

#: A worker: says which GPUs it has, then works until it is stopped.
WORKER = ["sh", "-c", "echo $CUDA_VISIBLE_DEVICES; exec sleep 600"]

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path, folder: Path) -> Iterator[Start]:
    """Starts a worker on a machine with ``gpus`` GPUs."""
    locks = tmp_path / "locks"
    locks.mkdir()
    running: list[subprocess.Popen[str]] = []

    def start(gpus: int | None, per_worker: int = 1, command: list[str] = WORKER) -> subprocess.Popen[str]:
        machine = tmp_path / f"machine-{gpus}"
        tool = machine / "nvidia-smi"
        # Once: another worker may be reading it.
        if not tool.exists():
            machine.mkdir()
            listed = "\n".join(
                f"GPU {number}: A GPU (UUID: GPU-{number})\n  MIG 1g: ..." for number in range(gpus or 0)
            )
            tool.write_text("#!/bin/sh\nexit 9\n" if gpus is None else f"#!/bin/sh\ncat <<'END'\n{listed}\nEND\n")
            tool.chmod(tool.stat().st_mode | stat.S_IEXEC)
        environ = {
            "PATH": f"{machine}{os.pathsep}{os.environ['PATH']}",
            "GPU_LOCKS": str(locks),
            "GPUS_PER_WORKER": str(per_worker),
        }
        words = [str(folder / "one-gpu"), *command]
        process = subprocess.Popen(words, env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    """The worker's first line: which GPUs it has; empty when it didn't start."""
    assert process.stdout
    return process.stdout.readline().strip()


def test_replicas_take_different_gpus(start: Start) -> None:
    assert sorted(said(worker) for worker in [start(4) for _ in range(4)]) == ["0", "1", "2", "3"]


def test_one_too_many_says_so_and_a_gpu_is_free_again_when_its_holder_is_killed(start: Start) -> None:
    first, second = start(2), start(2)
    taken = {said(first), said(second)}
    assert taken == {"0", "1"}
    third = start(2)
    _, complaint = third.communicate(timeout=60)
    assert third.returncode == 75
    assert complaint == "error: 1 of 2 GPUs wanted, 0 free; hint: --scale gpu-worker=2 is the most\n"
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert said(start(2)) in taken


def test_a_worker_may_take_several_and_never_gets_half_of_them(start: Start) -> None:
    workers = [start(4, per_worker=2) for _ in range(2)]
    assert sorted(said(worker) for worker in workers) == ["0,1", "2,3"]


def test_the_worker_takes_the_place_of_the_script(start: Start) -> None:
    worker = start(1)
    assert said(worker) == "0"
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=60) == -signal.SIGTERM


@pytest.mark.parametrize(
    ("gpus", "per_worker", "complaint"),
    [(None, 1, "error: nvidia-smi lists no GPU; hint:"), (1, 2, "error: GPUS_PER_WORKER is 2, this machine has 1")],
)
def test_what_cannot_work_is_said(start: Start, gpus: int | None, per_worker: int, complaint: str) -> None:
    worker = start(gpus, per_worker)
    _, errors = worker.communicate(timeout=60)
    assert worker.returncode == 78 and errors.startswith(complaint)
