"""The data directory of ``fabric up``: one owner at a time, and a file that says what runs."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from fabric.cli import private_file
from fabric.contracts.errors import ConfigError

_RUN_FILE = "run.json"


@contextlib.contextmanager
def hold(data_dir: Path) -> Iterator[None]:
    """Makes the directory and owns it. The kernel lets go when the process ends, however it ends.

    Raises:
        ConfigError: another process owns it, or it can't be written.
    """
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        (data_dir / ".gitignore").write_text("*\n")
        lock = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError(
            f"Can't write the data directory {data_dir} ({error.strerror}): "
            "mend that, or choose another with --data-dir or FABRIC_DATA_DIR."
        ) from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.read(lock, 32).decode().strip() or "unknown"
            raise ConfigError(
                f"Another `fabric up` (process {owner}) uses the data directory {data_dir}: "
                "stop it, or choose another with --data-dir or FABRIC_DATA_DIR."
            ) from None
        os.truncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(lock)


def write_run(data_dir: Path, values: dict[str, Any]) -> None:
    """Replaces ``run.json`` in one step: readers see the old one or the new one, whole."""
    private_file.replace(data_dir / _RUN_FILE, orjson.dumps(values, option=orjson.OPT_INDENT_2) + b"\n")


def remove_run(data_dir: Path) -> None:
    (data_dir / _RUN_FILE).unlink(missing_ok=True)


def read_run(data_dir: Path) -> dict[str, Any] | None:
    """What runs on this data directory now; ``None`` when nothing does."""
    try:
        values: dict[str, Any] = orjson.loads((data_dir / _RUN_FILE).read_bytes())
        os.kill(values["supervisor"], 0)
    except PermissionError:
        return values
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return values
