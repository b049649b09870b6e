"""vLLM's own server on the CPU (scripts/get-vllm-cpu makes it), with a model of random weights."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from benchmarks.processes import Void, program, until

FOLDER = Path(os.environ.get("VLLM_CPU_HOME") or Path.home() / ".cache/inference-fabric/vllm-cpu")
_VARIABLES = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
_START_S = 400.0


class VllmServer:
    """``address``: ``host:port``."""

    def __init__(self, address: str, process: subprocess.Popen[bytes]) -> None:
        self.address = address
        self._process = process

    def cpu_s(self) -> float:
        """Seconds of processor time of all its processes until now."""
        main = psutil.Process(self._process.pid)
        times = [process.cpu_times() for process in (main, *main.children(recursive=True))]
        return sum(t.user + t.system for t in times)


@contextmanager
def vllm_server(name: str, *, context: int, in_flight: int) -> Iterator[VllmServer]:
    """Runs one that serves its model as ``name``.

    Raises:
        Void: there is none on this machine, or it doesn't start.
    """
    if not (FOLDER / "made").exists():
        raise Void(f"there is no vLLM in {FOLDER}: ./scripts/get-vllm-cpu makes it, or says why it can't")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with tempfile.TemporaryDirectory(prefix="fabric-bench-", dir="/tmp") as folder:
        log = Path(folder) / "log"
        command = [str(FOLDER / "bin" / "vllm"), "serve", str(_model(Path(folder))), "--served-model-name", name]
        command += ["--host", "127.0.0.1", "--port", address.rpartition(":")[2], "--disable-uvicorn-access-log"]
        command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", str(context)]
        command += ["--max-num-seqs", str(in_flight)]

        def up() -> bool:
            if process.poll() is not None:
                raise Void(f"vLLM didn't start:\n{log.read_text('utf-8', 'replace')[-2000:]}")
            try:
                return httpx.get(f"http://{address}/health", timeout=5, trust_env=False).is_success
            except httpx.TransportError:
                return False

        with program(command, log=log, variables=_VARIABLES) as process:
            until(up, within_s=_START_S, missing="vLLM isn't up")
            yield VllmServer(address, process)


def _model(folder: Path) -> Path:
    script = str(Path(__file__).with_name("larger_model.py"))
    command = [str(FOLDER / "bin" / "python"), script, str(FOLDER / "model"), str(folder / "model")]
    made = subprocess.run(command, env={**os.environ, **_VARIABLES}, capture_output=True, text=True)
    if made.returncode:
        raise Void(f"the model couldn't be made:\n{made.stderr[-2000:]}")
    return folder / "model"
