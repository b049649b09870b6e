"""Fixtures that many tests share: a real Valkey, empty for each test."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from fabric.store import Store, embedded


@dataclass
class Valkey:
    """A Valkey process with its data in a folder of its own. ``kill`` then ``start`` is a crash."""

    folder: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        return self.folder / "s"

    @property
    def url(self) -> str:
        return embedded.url(self.socket)

    @property
    def broker_url(self) -> str:
        return embedded.broker_url(self.socket)

    def start(self) -> None:
        command = embedded.server_command(self.socket, self.folder)
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert self.process.stdout
        for line in self.process.stdout:
            if b"eady to accept connections" in line:
                break
        else:
            raise RuntimeError("Valkey didn't start")
        # Nobody reads on: a full pipe would stop the server.
        subprocess.Popen(["cat"], stdin=self.process.stdout, stdout=subprocess.DEVNULL)
        self.process.stdout.close()

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[Valkey]:
    # A unix socket's path is limited to about 100 bytes: pytest's own folders can be too deep.
    with tempfile.TemporaryDirectory(prefix="fabric-", dir="/tmp") as folder:
        server = Valkey(Path(folder))
        server.start()
        yield server
        server.kill()


@pytest.fixture
def valkey(valkey_server: Valkey) -> Valkey:
    """A running, empty Valkey."""
    if valkey_server.process is None:
        valkey_server.start()
    with redis.Redis.from_url(valkey_server.url) as connection:
        connection.flushall()
    return valkey_server


@pytest.fixture
def store(valkey: Valkey) -> Iterator[Store]:
    store = Store(valkey.url)
    yield store
    store.close()
