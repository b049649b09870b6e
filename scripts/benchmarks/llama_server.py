"""llama.cpp's own HTTP server without the fabric: the program that a worker starts, with the same parameters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.processes import Void, program
from fabric.contracts.catalog import Deployment
from fabric.fit.gguf import read_model
from fabric.fit.memory import available_memory
from workers.engines.llamacpp import options
from workers.engines.llamacpp.machine import physical_cores

_PROGRAM = str(Path(options.__file__).with_name("child.py"))
#: As a worker sets it: without it llama.cpp's idle threads burn the core that the client needs.
_VARIABLES = {"GOMP_SPINCOUNT": "200"}


@contextmanager
def llama_server(deployment: Deployment) -> Iterator[str]:
    """Runs one for the deployment; answers the path of its socket."""
    header = read_model(Path(deployment.model))
    chosen = options.plan(
        deployment, options.parse_options(deployment), header, cores=physical_cores(), memory=available_memory()
    )
    with tempfile.TemporaryDirectory(prefix="fabric-bench-", dir="/tmp") as folder:
        command = [sys.executable, "-I", _PROGRAM, str(os.getpid())]
        # It removes the folder of its socket when it ends.
        socket = f"{folder}/llama/llama.sock"
        Path(socket).parent.mkdir()
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with program(command, log=Path(folder) / "log", variables=_VARIABLES, **pipes) as process:
            assert process.stdin and process.stdout
            process.stdin.write(json.dumps({"socket": socket, "params": chosen.params}).encode() + b"\n")
            process.stdin.flush()
            if not process.stdout.readline():
                raise Void(f"llama.cpp didn't start: {(Path(folder) / 'log').read_text()[-1000:]}")
            yield socket
