"""How much memory there is: of this machine, containers considered, and of its GPU."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import psutil

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def available_memory() -> int:
    """Bytes that this process can have without swapping or meeting the limit of a container above it."""
    return max(0, min([psutil.virtual_memory().available, *left_in_cgroups(_CGROUPS, _OWN_CGROUP)]))


def left_in_cgroups(root: Path, own: Path) -> Iterator[int]:
    """What each group above us has left, in bytes; none where nothing is limited.

    Version 2: ``memory.max`` less ``memory.current``; version 1: ``memory.limit_in_bytes`` less
    ``memory.usage_in_bytes`` (kernel: admin-guide/cgroup-v2, cgroup-v1/memory). Files that the kernel can drop
    at once (``inactive_file``) aren't in the way.
    """
    for line in _read(own).splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            base, limit, used, droppable = root, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            base, limit, used = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            droppable = "total_inactive_file"
        else:
            continue
        group = base / path.strip("/")
        # In a container the path may be the host's: then only the root is there, and is ours.
        for folder in (group, *group.parents):
            if (left := _left(folder, limit, used, droppable)) is not None:
                yield left
            if folder == base:
                break


def _left(folder: Path, limit: str, used: str, droppable: str) -> int | None:
    most, now = _read(folder / limit).strip(), _read(folder / used).strip()
    if not most.isdigit() or not now.isdigit():
        return None
    files = dict(line.partition(" ")[::2] for line in _read(folder / "memory.stat").splitlines()).get(droppable, "0")
    return int(most) - int(now) + (int(files) if files.strip().isdigit() else 0)


def gpu_memory() -> int | None:
    """Bytes of the first NVIDIA GPU, by its driver's own library (NVML); ``None`` where there is none."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        if nvml.nvmlInit_v2() != 0:
            return None
        try:
            device, memory = ctypes.c_void_p(), _NvmlMemory()
            if nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device)) != 0:
                return None
            if nvml.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory)) != 0:
                return None
            return int(memory.total)
        finally:
            nvml.nvmlShutdown()
    except (OSError, AttributeError):
        return None


class _NvmlMemory(ctypes.Structure):
    """``nvmlMemory_t``."""

    _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
