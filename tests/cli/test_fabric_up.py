"""``fabric up`` with a real Valkey, real signals and stand-ins for the fabric's other processes."""

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

import psutil
import pytest
import redis

from fabric.contracts.secret import Secrets
from fabric.contracts.signed import Signer
from fabric.contracts.zones import WorkerKeys
from fabric.settings.settings import socket_path
from fabric.store import append_only
from fabric.store.embedded import server_command
from tests.conftest import SmallDisk

#: Plays every process but Valkey: says when it starts and stops; ``api`` answers 200 on the socket it is given.
STAND_IN = """
import os, signal, socket, sys, time
name, folder = sys.argv[1], os.environ["STAND_IN"]
def say(what):
    with open(folder + "/story", "a") as story:
        story.write(f"{what} {name}\\n")
def stop(*_):
    say("stop")
    if os.path.exists(f"{folder}/slow-{name}"):
        time.sleep(60)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
say("start")
if os.path.exists(f"{folder}/wrong-{name}"):
    print("error: the model file is cut short", flush=True)
    sys.exit(78)
if name == "migrate":
    sys.exit(0)
print("INFO up", flush=True)
if name != "api":
    while True:
        signal.pause()
listener = socket.socket(fileno=int(sys.argv[3]))
while True:
    connection, _ = listener.accept()
    connection.recv(4096)
    connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n")
    connection.close()
"""

UP = """
import asyncio, os, sys
from fabric.cli.data_dir import hold
from fabric.cli.fabric_up import FabricUp
from fabric.cli.journal import Journal
from fabric.cli.entry import _report
from fabric.contracts.errors import FabricError
from fabric.settings import load

settings = load()
async def run():
    journal = Journal(settings.data_dir / "fabric.log", sys.stdout)
    try:
        await FabricUp(settings, journal, os.environ, command=(sys.executable, os.environ["STAND_IN"] + "/it.py")).run()
    finally:
        journal.close()
try:
    with hold(settings.data_dir):
        asyncio.run(run())
except FabricError as error:
    _report(error.message, None)
    sys.exit(78)
"""

WITH_KEYS = """
models:
  - name: small
    deployments:
      - {name: here, engine: mock, tier: cpu}
      - {name: rack, engine: vllm, tier: gpu, base_url: "http://127.0.0.1:9", api_key_env: GPU_KEY}
      - {name: there, engine: openai, tier: cloud, region: us, api_key_env: CLOUD_KEY}
webhooks:
  - {name: ops, url: "https://ops.example", secret_env: HOOK_KEY, events: [batch.completed]}
"""


@dataclass
class Up:
    """``fabric up`` as a process on a data directory of its own."""

    folder: Path
    environ: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[str] | None = None

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def start(self) -> Up:
        environ = {**os.environ, "STAND_IN": str(self.folder), "FABRIC_DATA_DIR": str(self.data), "FABRIC_PORT": "0"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", UP],
            env={**environ, **self.environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return self

    def ready(self) -> Up:
        """Reads the log up to the line that says so."""
        assert self.process and self.process.stdout
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if "ready on http://127.0.0.1:" in line:
                return self
        raise AssertionError("".join(lines))

    def run(self) -> dict[str, Any]:
        return dict(json.loads((self.data / "run.json").read_bytes()))

    def pids(self) -> dict[str, int]:
        return {name: process["pid"] for name, process in self.run()["processes"].items()}

    def end(self, *signals: signal.Signals) -> tuple[int, str]:
        """Sends the signals; answers the exit status and the rest of the log."""
        assert self.process
        for number in signals:
            self.process.send_signal(number)
        output, _ = self.process.communicate(timeout=30)
        return self.process.returncode, output

    def story(self) -> list[str]:
        return (self.folder / "story").read_text().splitlines()


def until(true: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if value := true():
            return value
        time.sleep(0.02)
    raise AssertionError("it didn't happen")


@pytest.fixture
def up() -> Iterator[Up]:
    with tempfile.TemporaryDirectory(prefix="fabric-", dir="/tmp") as folder:
        (Path(folder) / "it.py").write_text(STAND_IN)
        up = Up(Path(folder))
        yield up
        if up.process and up.process.poll() is None:
            up.process.kill()
            up.process.communicate()


def test_everything_starts_in_order_and_stops_the_other_way_round(up: Up) -> None:
    up.start().ready()
    run = up.run()
    assert run["port"] > 0
    assert run["url"] == f"http://127.0.0.1:{run['port']}"
    assert list(run["processes"]) == ["valkey", "scheduler", "recorder", "worker-cpu", "api"]
    until(lambda: len(up.story()) == 5)
    status, log = up.end(signal.SIGINT)
    assert status == 0
    assert log.endswith("INFO    stopped\n")
    story = up.story()
    assert story[0] == "start migrate"
    assert sorted(story[1:5]) == ["start api", "start recorder", "start scheduler", "start worker"]
    assert story[5:] == ["stop api", "stop worker", "stop scheduler", "stop recorder"]
    assert not (up.data / "run.json").exists()
    assert not any(psutil.pid_exists(process["pid"]) for process in run["processes"].values())


def test_each_process_that_is_killed_comes_back(up: Up) -> None:
    up.start().ready()
    before = up.pids()
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)
    after = until(lambda: (now := up.pids()) and all(now[n] not in (None, before[n]) for n in before) and now)
    assert after.keys() == before.keys()
    assert all(process["restarts"] == 1 for process in up.run()["processes"].values())


def test_a_killed_supervisor_takes_all_along_and_the_next_one_finds_the_data(up: Up) -> None:
    up.start().ready()
    url = f"unix://{up.data}/valkey.sock"
    with redis.Redis.from_url(url) as store:
        store.set("kept", "yes")
    children = [psutil.Process(pid) for pid in up.pids().values()]
    assert up.end(signal.SIGKILL)[0] == -signal.SIGKILL
    _, alive = psutil.wait_procs(children, timeout=5)
    assert alive == []
    up.start().ready()
    with redis.Redis.from_url(url) as store:
        assert store.get("kept") == b"yes"


def test_a_hole_that_a_full_disk_left_is_taken_out_at_the_start(up: Up) -> None:
    up.start().ready()
    with redis.Redis.from_url(f"unix://{up.data}/valkey.sock") as store:
        store.set("kept", "yes")
    up.end(signal.SIGTERM)
    (file,) = append_only.files(up.data / "valkey")
    file.write_bytes(b"\0" * 500 + file.read_bytes())
    up.start().ready()
    with redis.Redis.from_url(f"unix://{up.data}/valkey.sock") as store:
        assert store.get("kept") == b"yes"
    up.end(signal.SIGTERM)
    assert "had a hole of 500 bytes at 0" in (up.data / "fabric.log").read_text()


def test_a_process_comes_back_while_the_disk_is_full(up: Up, small_disk: SmallDisk) -> None:
    up.environ["FABRIC_DATA_DIR"] = str(small_disk.folder)
    assert up.start().ready().process
    small_disk.fill()
    os.kill(json.loads((small_disk.folder / "run.json").read_bytes())["processes"]["recorder"]["pid"], signal.SIGKILL)
    until(lambda: up.story().count("start recorder") == 2)
    small_disk.free()
    assert up.end(signal.SIGTERM)[0] == 0


def test_a_damaged_store_is_left_as_it_is_and_says_who_knows_more(up: Up) -> None:
    up.start().ready()
    up.end(signal.SIGTERM)
    (file,) = append_only.files(up.data / "valkey")
    damaged = file.read_bytes() + b"\0\0damaged"
    file.write_bytes(damaged)
    status, log = up.start().end()
    assert status == 78
    assert log.endswith("`fabric doctor` looks at what it has on disk.\n")
    assert file.read_bytes() == damaged


def test_a_store_that_was_left_behind_is_stopped_first(up: Up) -> None:
    (up.data / "valkey").mkdir(parents=True)
    socket = up.data / "valkey.sock"
    left = subprocess.Popen(server_command(socket, up.data / "valkey"), stdout=subprocess.DEVNULL)
    until(socket.exists)
    up.start().ready()
    assert left.wait(timeout=5) == 0
    assert up.end(signal.SIGTERM)[0] == 0


def test_a_second_one_on_the_same_data_is_refused(up: Up) -> None:
    first = up.start().ready().process
    assert first
    status, log = up.start().end()
    assert status == 78
    assert log.startswith(f"error: Another `fabric up` (process {first.pid}) uses the data directory {up.data}")
    up.process = first


def test_a_process_that_cannot_run_as_configured_stops_everything(up: Up) -> None:
    (up.folder / "wrong-worker").touch()
    status, log = up.start().end()
    assert status == 78
    assert log.endswith("error: worker-cpu can't run as configured. the model file is cut short\n")
    assert "starts again" not in log


def test_a_failed_migration_stops_everything(up: Up) -> None:
    (up.folder / "wrong-migrate").touch()
    status, log = up.start().end()
    assert (status, log.splitlines()[-1]) == (78, "error: the model file is cut short")


def test_a_second_interrupt_waits_for_nobody(up: Up) -> None:
    (up.folder / "slow-worker").touch()
    up.start().ready()
    assert up.process
    until(lambda: "start worker" in up.story())
    up.process.send_signal(signal.SIGINT)
    until(lambda: "stop worker" in up.story())
    started = time.monotonic()
    status, log = up.end(signal.SIGINT)
    assert (status, time.monotonic() - started < 10) == (0, True)
    assert "stopping at once" in log


def test_a_taken_port_is_named(up: Up) -> None:
    up.start().ready()
    port = up.run()["port"]
    with tempfile.TemporaryDirectory(prefix="fabric-", dir="/tmp") as folder:
        other = Up(Path(folder), {"FABRIC_PORT": str(port)})
        status, log = other.start().end()
    assert status == 78
    assert log.startswith(f"error: Can't listen on 127.0.0.1, port {port}: address already in use.")


def test_a_deep_data_directory_has_its_socket_elsewhere_while_it_runs(up: Up) -> None:
    deep = up.folder / ("deep" * 30) / "data"
    up.environ["FABRIC_DATA_DIR"] = str(deep)
    socket = socket_path(deep)
    up.start().ready()
    assert socket.is_socket()
    assert socket.parent.stat().st_mode & 0o777 == 0o700
    assert up.end(signal.SIGTERM)[0] == 0
    assert not socket.parent.exists()


def test_each_process_gets_the_secrets_that_it_needs_and_no_others(up: Up) -> None:
    secrets = {
        "FABRIC_SECRET": "canary-" * 6,
        "CLOUD_KEY": "canary-cloud",
        "GPU_KEY": "canary-gpu",
        "HOOK_KEY": "canary-hook",
    }
    config = up.folder / "fabric.yaml"
    config.write_text(WITH_KEYS)
    up.environ |= {**secrets, "FABRIC_CONFIG": str(config)}
    up.start().ready()
    held, zones = {}, {}
    for name, pid in up.pids().items():
        environ = psutil.Process(pid).environ()
        # Valkey writes its title over its environment.
        assert name == "valkey" or environ["STAND_IN"] == str(up.folder)
        held[name] = {variable for variable in secrets if any(secrets[variable] in text for text in environ.values())}
        if name == "scheduler":
            assert Signer.parse(environ["FABRIC_ZONE_KEYS"]).verifier == Signer.of(Secrets(["canary-" * 6])).verifier
        elif keys := environ.get("FABRIC_ZONE_KEYS"):
            zones[name] = WorkerKeys.parse(keys).zones
    assert zones == {"worker-cpu": {"local"}, "worker-gpu": {"local"}, "worker-cloud": {"cloud"}}
    assert held == {
        "valkey": set(),
        "scheduler": set(),
        "recorder": {"FABRIC_SECRET", "HOOK_KEY"},
        "worker-cpu": set(),
        "worker-gpu": {"GPU_KEY"},
        "worker-cloud": {"CLOUD_KEY"},
        "api": {"FABRIC_SECRET"},
    }


def test_an_outside_store_is_not_started_here(up: Up) -> None:
    up.environ["FABRIC_REDIS_URL"] = "redis://127.0.0.1:9"
    up.start().ready()
    assert "valkey" not in up.pids()
    assert up.end(signal.SIGTERM)[0] == 0
