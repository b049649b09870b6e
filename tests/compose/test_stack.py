"""The containers of compose.yaml as plain processes: their commands, their environment, their health checks."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from fabric.store import embedded

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="health.py reads /proc")

ROOT = Path(__file__).parents[2]
#: One model a tier. ``{url}``: of a provider on loopback; ``{vllm}``: what plays vLLM, with ``{folder}`` for its notes.
MODELS = """
models:
  - {{name: assistant, deployments: [{{engine: mock, tier: cpu}}]}}
  - name: big
    deployments:
      - {{engine: vllm, tier: gpu, model: org/name, options: {{command: [{python}, {vllm}], env: {{PLAY: {folder}}}}}}}
  - name: hosted
    deployments:
      - {{engine: openai, tier: cloud, model: gpt, base_url: "{url}", api_key_env: OPENAI_API_KEY}}
"""
FAKE_VLLM = ROOT / "tests" / "workers" / "engines" / "fake_vllm.py"
KEY = "sk-of-cloud-env"
#: Generous: loading everything five times over takes long on a loaded machine.
START_S = 120.0


@dataclass
class Stack:
    """What a container gets from Docker is here a folder, loopback and this Python."""

    compose: Any
    folder: Path
    port: int
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def environ(self, service: str) -> dict[str, str]:
        """The service's own, where a container's addresses and paths are replaced by this machine's."""
        given = self.compose.environment(service)
        here = {
            "FABRIC_REDIS_URL": embedded.url(self.folder / "s"),
            "FABRIC_CONFIG": str(self.folder / "fabric.yaml"),
            "FABRIC_DATA_DIR": str(self.folder / "data"),
            "FABRIC_HOST": "127.0.0.1",
            "FABRIC_PORT": str(self.port),
            "FABRIC_ZONE_KEYS_FILE": str(self._keys(service)),
        }
        # On loopback nobody has to be told that there are no keys.
        given = {name: here.get(name, value) for name, value in given.items()}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FABRIC_")}
        return {**kept, **given, **self._only_for(service), "PYTHONPATH": str(ROOT)}

    def _only_for(self, service: str) -> dict[str, str]:
        """What a container gets by a file of its own, or from the machine."""
        files = [file["path"] for file in self.compose.services[service].get("env_file", [])]
        lines = [line for file in files for line in (self.folder / file).read_text().splitlines()]
        given = dict(line.split("=", 1) for line in lines)
        if any(mount.endswith(":/run/gpus") for mount in self.compose.services[service].get("volumes", [])):
            given |= {"GPU_LOCKS": str(self.folder / "gpus"), "PATH": f"{self.folder}{os.pathsep}{os.environ['PATH']}"}
        return given

    def _keys(self, service: str) -> Path:
        """What the service is given of what `zone-keys` writes."""
        held = [volume for volume in self.compose.services[service].get("volumes", ()) if volume.endswith(":/keys:ro")]
        name = held[0].removeprefix("keys-").partition(":")[0] if held else "nobody's"
        return self.folder / "keys" / name / "zone-keys"

    def start(self, service: str) -> subprocess.Popen[bytes]:
        words = [word if word != "/keys" else str(self.folder / "keys") for word in self._words(service)]
        # An image's entry point is `fabric`, unless compose.yaml names another.
        entry = self.compose.services[service].get("entrypoint", ["fabric"])
        fabric = [sys.executable, "-P", "-m", "fabric.cli"]
        command = [str(ROOT / "compose" / word) for word in entry if word != "fabric"] + fabric + words
        with (self.folder / f"{service}.log").open("ab") as log:
            process = subprocess.Popen(
                command, env=self.environ(service), cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.processes[service] = process
        return process

    def _words(self, service: str) -> list[str]:
        words: list[str] = self.compose.services[service]["command"]
        return words

    def start_valkey(self) -> None:
        words = [str(self.folder) if word == "/data" else word for word in self.compose.services["valkey"]["command"]]
        command = [str(embedded.server_binary()), *words[1:], "--port", "0", "--unixsocket", str(self.folder / "s")]
        with (self.folder / "valkey.log").open("ab") as log:
            self.processes["valkey"] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def health(self, service: str, *options: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Runs the service's health check, of compose.yaml, as it stands there."""
        kind, python, script, *words = self.compose.services[service]["healthcheck"]["test"]
        assert (kind, Path(python).name, Path(script).name) == ("CMD", "python", "health.py")
        if service == "scheduler":
            # In a container there is one. Here other tests may run theirs.
            options = ("--pid", str(self.processes[service].pid), *options)
        return subprocess.run(
            [sys.executable, str(ROOT / "compose" / "health.py"), *words, *options],
            env={**self.environ(service), **environ},
            cwd=self.folder,
            capture_output=True,
            text=True,
        )

    def until_healthy(self, service: str, *options: str) -> None:
        limit = time.monotonic() + START_S
        while (said := self.health(service, *options)).returncode != 0:
            process = self.processes[service]
            assert process.poll() is None, (self.folder / f"{service}.log").read_text()
            assert time.monotonic() < limit, f"{said.stderr}\n{(self.folder / f'{service}.log').read_text()}"
            time.sleep(0.2)

    def stop(self) -> None:
        for process in self.processes.values():
            process.kill()
        for process in self.processes.values():
            process.wait()


class Provider(BaseHTTPRequestHandler):
    """A hosted API, as far as one request goes."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        known = self.headers["authorization"] == f"Bearer {KEY}"
        choice = {"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}
        body = json.dumps({"choices": [choice]} if known else {"error": {"message": "no"}}).encode()
        self.send_response(200 if known else 401)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Silent."""


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Provider)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def stack(compose: Any, provider: str) -> Iterator[Stack]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    # A unix socket's path is limited to about 100 bytes: pytest's own folders can be too deep.
    with tempfile.TemporaryDirectory(prefix="fabric-", dir="/tmp") as folder:
        stack = Stack(compose, Path(folder), port)
        models = MODELS.format(python=sys.executable, vllm=FAKE_VLLM, folder=folder, url=provider)
        (stack.folder / "fabric.yaml").write_text(models)
        (stack.folder / "cloud.env").write_text(f"OPENAI_API_KEY={KEY}\n")
        tool = stack.folder / "nvidia-smi"
        tool.write_text("#!/bin/sh\necho 'GPU 0: A GPU (UUID: GPU-0)'\necho 'GPU 1: A GPU (UUID: GPU-1)'\n")
        tool.chmod(0o755)
        for name in ("data", "gpus"):
            (stack.folder / name).mkdir()
        try:
            stack.start_valkey()
            assert stack.start("migrate").wait(timeout=START_S) == 0, (stack.folder / "migrate.log").read_text()
            assert stack.start("zone-keys").wait(timeout=START_S) == 0, (stack.folder / "zone-keys.log").read_text()
            for service in ("recorder", "scheduler", "cpu-worker", "api"):
                stack.start(service)
            for service in ("recorder", "scheduler", "cpu-worker", "api"):
                stack.until_healthy(service)
            yield stack
        finally:
            stack.stop()


def test_what_compose_starts_answers_a_request(stack: Stack) -> None:
    body = {"model": "assistant", "messages": [{"role": "user", "content": "hello"}]}
    url = f"http://127.0.0.1:{stack.port}/v1/chat/completions"
    answer = httpx.post(url, json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-fabric-tier"] == "cpu"


@pytest.mark.parametrize(
    ("service", "model", "tier"), [("gpu-worker", "big", "gpu"), ("cloud-worker", "hosted", "cloud")]
)
def test_a_profiles_worker_joins_answers_and_leaves(stack: Stack, service: str, model: str, tier: str) -> None:
    """With its own entry point, keys, environment file and health check."""
    process = stack.start(service)
    stack.until_healthy(service)
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
    answer = httpx.post(f"http://127.0.0.1:{stack.port}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    assert (answer.headers["x-fabric-tier"], answer.json()["choices"][0]["message"]["content"]) == (tier, "Hello")
    process.terminate()
    assert process.wait(timeout=60) == 0, (stack.folder / f"{service}.log").read_text()
    assert KEY not in (stack.folder / f"{service}.log").read_text()
    if tier == "gpu":
        [start] = map(json.loads, (stack.folder / "starts.jsonl").read_text().splitlines())
        assert start["environ"]["CUDA_VISIBLE_DEVICES"] == "0"
        assert not [name for name in start["environ"] if name.startswith("FABRIC_")]


def test_a_worker_of_another_tier_is_not_this_one(stack: Stack) -> None:
    command = [sys.executable, str(ROOT / "compose" / "health.py"), "worker", "gpu"]
    said = subprocess.run(command, env=stack.environ("cpu-worker"), capture_output=True, text=True)
    assert said.returncode == 1
    assert said.stderr == "no worker of tier gpu on this host had a heartbeat within 15000 ms\n"


@pytest.mark.parametrize("service", ["cpu-worker", "recorder"])
def test_a_store_that_is_away_is_no_reason_to_restart(stack: Stack, service: str) -> None:
    nowhere = {"FABRIC_REDIS_URL": f"unix://{stack.folder}/nowhere"}
    said = stack.health(service, **nowhere)
    assert (said.returncode, said.stderr) == (1, "the job store doesn't answer\n")
    assert stack.health(service, "--live", **nowhere).returncode == 0


def test_a_recorder_of_another_store_is_not_this_one(stack: Stack) -> None:
    said = stack.health("recorder", FABRIC_REDIS_URL=f"{embedded.url(stack.folder / 's', 7)}")
    assert said.returncode == 1 and said.stderr.startswith("no recorder on this host has read within")


def test_a_port_where_nobody_listens_is_not_well(stack: Stack) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    said = stack.health("api", FABRIC_PORT=str(port))
    assert said.returncode == 1 and said.stderr.startswith(f"nothing answers on port {port}")


def test_a_scheduler_that_stands_still_is_not_well(stack: Stack) -> None:
    process = stack.processes["scheduler"]
    process.send_signal(signal.SIGSTOP)
    try:
        said = stack.health("scheduler")
    finally:
        process.send_signal(signal.SIGCONT)
    assert said.returncode == 1 and said.stderr.startswith("the scheduler's loop has stood still")
    stack.until_healthy("scheduler")


def test_when_the_store_is_killed_everyone_lives_on_and_is_well_again_when_it_is_back(stack: Stack) -> None:
    stack.processes["valkey"].kill()
    stack.processes["valkey"].wait()
    assert stack.health("api").returncode == 1
    assert stack.health("api", "--live").returncode == 0
    assert stack.health("scheduler").returncode == 0, "its loop goes round and waits for the store"
    stack.start_valkey()
    for service in ("recorder", "scheduler", "cpu-worker", "api"):
        stack.until_healthy(service)


def test_a_process_that_is_gone_is_not_well(stack: Stack) -> None:
    process = stack.processes["scheduler"]
    process.terminate()
    assert process.wait(timeout=60) == 0
    said = stack.health("scheduler")
    assert (said.returncode, said.stderr) == (1, "the scheduler's process has gone\n")
