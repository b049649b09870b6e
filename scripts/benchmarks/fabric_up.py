"""The fabric that is measured: a whole ``fabric up`` with a data directory and a port of its own."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.processes import Void, cpu_s, module, until

#: Generous: five Python processes on two busy cores.
_START_S = 120.0


class FabricUp:
    def __init__(self, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self._folder = folder
        self._process = process

    @property
    def data_dir(self) -> Path:
        return self._folder / "data"

    @property
    def config(self) -> Path:
        return self._folder / "fabric.yaml"

    @property
    def url(self) -> str:
        return str(self._run()["url"])

    @property
    def address(self) -> str:
        return urlsplit(self.url).netloc

    def pid(self, name: str) -> int:
        return int(self._run()["processes"][name]["pid"])

    def cpu_s(self) -> dict[str, float]:
        """Process -> seconds of processor time until now."""
        return {name: cpu_s(process["pid"]) for name, process in self._run()["processes"].items()}

    def cpu_since(self, before: dict[str, float]) -> Counter[str]:
        """Process -> seconds of processor time since ``cpu_s`` was asked.

        Raises:
            Void: a process died on the way.
        """
        died = [name for name, process in self._run()["processes"].items() if process["restarts"]]
        if died:
            raise Void(f"had to be started again: {', '.join(died)}")
        return Counter({name: seconds - before[name] for name, seconds in self.cpu_s().items()})

    def ready(self) -> bool:
        """
        Raises:
            Void: it has ended.
        """
        log = (self._folder / "up.log").read_text("utf-8", "replace")
        if self._process.poll() is not None:
            raise Void(f"fabric up ended:\n{log[-3000:]}")
        return "ready on http" in log

    def _run(self) -> dict[str, Any]:
        values: dict[str, Any] = json.loads((self.data_dir / "run.json").read_text())
        return values


@contextmanager
def fabric_up(config: str) -> Iterator[FabricUp]:
    """Runs while the context is open. ``config``: the text of its ``fabric.yaml``."""
    with tempfile.TemporaryDirectory(prefix="fabric-bench-", dir="/tmp") as name:
        folder = Path(name)
        (folder / "fabric.yaml").write_text(config)
        arguments = ("up", "--port", "0", "--data-dir", str(folder / "data"))
        with module("fabric.cli", *arguments, cwd=folder, log=folder / "up.log") as process:
            fabric = FabricUp(folder, process)
            until(fabric.ready, within_s=_START_S, missing="the fabric isn't ready")
            yield fabric


def mock_config(*, slots: int, latency_ms: float = 0) -> str:
    """A ``fabric.yaml`` with one model, ``mock``, on one deployment."""
    return f"""
models:
  - name: mock
    deployments:
      - {{engine: mock, tier: cpu, slots: {slots}, options: {{latency_ms: {latency_ms:g}}}}}
"""
