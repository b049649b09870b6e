"""The way to Flower: a login for its pages and its API, and no way to what Flower tells everyone."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).parents[2]
START_S = 90.0
LOGIN = ("user", "a-password")
OPEN = ("/metrics", "/healthcheck")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


def until_answers(url: str, process: subprocess.Popen[bytes]) -> None:
    limit = time.monotonic() + START_S
    while True:
        try:
            httpx.get(url, timeout=5)
            return
        except httpx.TransportError:
            assert process.poll() is None and time.monotonic() < limit
            time.sleep(0.1)


@pytest.fixture(scope="module")
def flower(compose: Any, valkey_server: Any) -> Iterator[str]:
    """Flower as the container starts it, on loopback."""
    port = free_port()
    [script] = compose.services["flower"]["command"]
    script = script.replace("0.0.0.0", "127.0.0.1").replace("5555", str(port))
    python = Path(sys.executable).parent
    environ = {
        "PATH": f"{python}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "FABRIC_REDIS_URL": valkey_server.url,
        "FLOWER_BASIC_AUTH": ":".join(LOGIN),
    }
    if valkey_server.process is None:
        valkey_server.start()
    process = subprocess.Popen(
        ["/bin/sh", "-c", script], env=environ, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        until_answers(f"{url}/healthcheck", process)
        yield url
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def door(flower: str, folder: Path, tool: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    haproxy = tool("haproxy", "Debian: haproxy")
    port = free_port()
    text = (folder / "flower-door.cfg").read_text()
    text = text.replace("flower:5555 resolvers names init-addr none", flower.removeprefix("http://"))
    text = text.replace("bind :5555", f"bind 127.0.0.1:{port}")
    config = tmp_path_factory.mktemp("door") / "haproxy.cfg"
    config.write_text(text)
    process = subprocess.Popen([haproxy, "-f", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        until_answers(f"{url}/alive", process)
        yield url
    finally:
        process.kill()
        process.wait()


def test_flower_asks_for_a_login_but_not_everywhere(flower: str) -> None:
    """Why there is a door. If this fails because Flower protects them now, the door can go."""
    assert httpx.get(f"{flower}/workers", timeout=30).status_code == 401
    assert httpx.get(f"{flower}/api/workers", timeout=30).status_code == 401
    assert [httpx.get(flower + path, timeout=30).status_code for path in OPEN] == [200, 200]


def test_flower_can_be_looked_at_and_changes_nothing(flower: str) -> None:
    assert httpx.get(f"{flower}/workers", auth=LOGIN, timeout=30).status_code == 200
    answer = httpx.post(f"{flower}/api/worker/shutdown/any", auth=LOGIN, timeout=30)
    assert answer.status_code == 403


def test_the_door_leads_to_the_pages_and_keeps_the_login(door: str) -> None:
    assert httpx.get(f"{door}/alive", timeout=30).status_code == 200
    assert httpx.get(f"{door}/workers", timeout=30).status_code == 401
    assert httpx.get(f"{door}/workers", auth=LOGIN, timeout=30).status_code == 200


@pytest.mark.parametrize("path", [*OPEN, "//metrics", "/METRICS", "/%6detrics", "/metrics/", "/metrics?x=1"])
def test_the_door_leads_to_nothing_open(door: str, path: str) -> None:
    assert httpx.get(door + path, timeout=30).status_code == 404


def test_the_configuration_as_it_ships_is_valid(folder: Path, tool: Any) -> None:
    haproxy = tool("haproxy", "Debian: haproxy")
    said = subprocess.run([haproxy, "-c", "-f", folder / "flower-door.cfg"], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
