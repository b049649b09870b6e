"""A whole fabric as a user runs it: ``fabric up`` in a process of its own, spoken to from outside only."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

ROOT = Path(__file__).parents[2]
#: Generous: a loaded machine with two cores imports Celery, SQLAlchemy and FastAPI five times over.
START_S = 90.0


def environ(**variables: str) -> dict[str, str]:
    """The environment without the caller's own settings, and with this checkout first on the path."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FABRIC_")}
    return {**kept, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", **variables}


def until(what: Callable[[], Any], *, within_s: float, hint: str = "") -> Any:
    """Looks again and again until ``what`` answers something; for things that have no event."""
    limit = time.monotonic() + within_s
    while not (answer := what()):
        assert time.monotonic() < limit, f"not within {within_s:g} s {hint}"
        time.sleep(0.05)
    return answer


@dataclass
class Fabric:
    """One ``fabric up``."""

    folder: Path
    variables: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def start(self, config: str | None = None) -> Fabric:
        if config is not None:
            (self.folder / "fabric.yaml").write_text(config)
        command = [sys.executable, "-m", "fabric.cli", "up", "--port", "0", "--data-dir", str(self.data)]
        (self.data / "run.json").unlink(missing_ok=True)  # of an earlier run that was killed
        with (self.folder / "up.log").open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=environ(**self.variables), stdout=log, stderr=log, start_new_session=True
            )
        until(self._ready, within_s=START_S, hint=f"for the fabric to be ready:\n{self.log()[-3000:]}")
        return self

    def _ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"fabric up ended:\n{self.log()}"
        return "ready on http" in self.log() and bool(self.run)

    def stop(self) -> int:
        """Ctrl-C, and the exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=90)

    def end(self) -> None:
        """Whatever state it is in."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(timeout=30)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def log(self) -> str:
        return (self.folder / "up.log").read_text("utf-8", "replace")

    @property
    def run(self) -> dict[str, Any]:
        try:
            values: dict[str, Any] = json.loads((self.data / "run.json").read_text())
        except FileNotFoundError:
            return {}
        return values

    @property
    def url(self) -> str:
        return str(self.run["url"])

    def pid(self, name: str) -> int | None:
        process = self.run.get("processes", {}).get(name)
        return process["pid"] if process else None

    def kill(self, name: str) -> None:
        """kill -9, and waits until the supervisor has another one running."""
        old = until(lambda: self.pid(name), within_s=30, hint=f"for {name} to run")
        os.kill(old, signal.SIGKILL)
        until(lambda: self.pid(name) not in (None, old), within_s=30, hint=f"for {name} to be started again")

    @property
    def environ(self) -> dict[str, str]:
        """For commands that talk to this fabric or work on its data."""
        return environ(
            **self.variables,
            FABRIC_URL=self.url,
            FABRIC_DATA_DIR=str(self.data),
            **({"FABRIC_CONFIG": str(self.folder / "fabric.yaml")} if (self.folder / "fabric.yaml").exists() else {}),
        )

    def command(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """``fabric …`` against this fabric."""
        command = [sys.executable, "-m", "fabric.cli", *arguments]
        timed = {"timeout": 120, **options}
        return subprocess.run(command, cwd=self.folder, env=self.environ, capture_output=True, text=True, **timed)

    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=5, timeout=120)

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False)


def new_fabric(**variables: str) -> Iterator[Fabric]:
    # A unix socket's path is limited: pytest's own folders can be too deep.
    with tempfile.TemporaryDirectory(prefix="fabric-e2e-", dir="/tmp") as folder:
        fabric = Fabric(Path(folder), variables)
        try:
            yield fabric
        finally:
            fabric.end()


@pytest.fixture(scope="module")
def real() -> Iterator[Fabric]:
    """The fabric as it comes: llama.cpp with the shipped model. Shared by a module's tests."""
    for fabric in new_fabric():
        yield fabric.start()


@pytest.fixture
def fresh() -> Iterator[Fabric]:
    """One that isn't started yet."""
    yield from new_fabric()
