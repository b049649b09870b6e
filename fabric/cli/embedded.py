"""The embedded Valkey as ``fabric up`` runs it: a clean place to start, and when it is ready."""

from __future__ import annotations

import asyncio
import os
import stat
from contextlib import suppress
from pathlib import Path

from fabric.contracts.errors import ConfigError

_LOOK_S = 0.02
_LEFTOVER_S = 10.0


async def clear(socket: Path, data_dir: Path) -> None:
    """Makes way for a new server: a private folder, and nobody on the socket.

    The caller owns the data directory, so a server that answers was left behind by an owner that
    was killed. Two servers on the same append-only file would ruin it.

    Raises:
        ConfigError: the folder belongs to someone else, or the leftover server doesn't stop.
    """
    folder = socket.parent
    if folder != data_dir:
        _make_private(folder)
    try:
        async with asyncio.timeout(_LEFTOVER_S):
            await _ask_until(socket, b"SHUTDOWN\r\n", None)
    except TimeoutError:
        raise ConfigError(f"A Valkey from an earlier run still holds {socket} and doesn't stop: end it.") from None
    socket.unlink(missing_ok=True)  # noqa: ASYNC240  (before anything else runs)


def tidy(socket: Path, data_dir: Path) -> None:
    """After the server has gone: removes the folder that was made for its socket."""
    if socket.parent != data_dir:
        with suppress(OSError):
            socket.unlink(missing_ok=True)
            socket.parent.rmdir()


async def ready(socket: Path) -> None:
    """Returns when the server has loaded its data and answers."""
    await _ask_until(socket, b"PING\r\n", b"+PONG\r\n")


def _make_private(folder: Path) -> None:
    """A folder under ``/tmp``, where others may write, too: they may have made it first."""
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise ConfigError(f"{folder} isn't yours alone: remove it, or choose a data directory with a shorter path.")


async def _ask_until(socket: Path, command: bytes, wanted: bytes | None) -> None:
    while True:
        if await _ask(socket, command) == wanted:
            return
        await asyncio.sleep(_LOOK_S)


async def _ask(socket: Path, command: bytes) -> bytes | None:
    """One inline command, answered by one line; ``None`` when nobody listens."""
    try:
        reader, writer = await asyncio.open_unix_connection(socket)
    except OSError:
        return None
    try:
        writer.write(command)
        return await reader.readline()
    except OSError:
        return b""
    finally:
        writer.close()
