"""What this process may use of its machine: physical cores, containers considered."""

from __future__ import annotations

import math
import os
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")
_CPUS = Path("/sys/devices/system/cpu")


def physical_cores() -> int:
    """Cores, not hardware threads: llama.cpp's arithmetic fills a core. Bounded by affinity and CPU quota."""
    if hasattr(os, "sched_getaffinity"):
        cpus = os.sched_getaffinity(0)
        cores = len({_siblings(cpu) for cpu in cpus})
    else:
        cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    return max(1, min(cores, _quota()))


def _siblings(cpu: int) -> str:
    """The hardware threads of the core that ``cpu`` belongs to."""
    return _read(_CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list") or str(cpu)


def _quota() -> int:
    """Cores that the container's limit amounts to."""
    quota, _, period = _read(_CGROUP / "cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit() and int(period):
        return math.ceil(int(quota) / int(period))
    return 2**16


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
