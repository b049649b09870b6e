"""Where the fabric's secret comes from: ``FABRIC_SECRET``, else a file in the data directory, made when missing."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from fabric.contracts.errors import ConfigError
from fabric.contracts.secret import Secrets
from fabric.settings.settings import Settings

_FILE = "secret"


def secrets_of(settings: Settings) -> Secrets:
    """
    Raises:
        ConfigError: the secret is too short, others can read its file, or it can't be made.
    """
    if settings.secret:
        return Secrets.parse(settings.secret)
    path = settings.data_dir / _FILE
    try:
        return Secrets.parse(_read(path) or _made(path))
    except OSError as error:
        raise ConfigError(
            f"The fabric's secret can't be kept in {path} ({error.strerror}): mend that, or give the same "
            "FABRIC_SECRET to every process; `openssl rand -hex 32` makes one."
        ) from None


def kept_secret(settings: Settings) -> str | None:
    """What ``FABRIC_SECRET`` holds or could hold, if there is one. Raises ``ConfigError``."""
    if settings.secret:
        return settings.secret
    path = settings.data_dir / _FILE
    try:
        text = _read(path)
    except OSError as error:
        raise ConfigError(f"The fabric's secret in {path} can't be read ({error.strerror}).") from None
    return text.strip() if text else None


def _read(path: Path) -> str | None:
    try:
        with path.open(encoding="ascii", errors="replace") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise ConfigError(f"Others can read the fabric's secret: chmod 600 {path}")
            return file.read()
    except FileNotFoundError:
        return None


def _made(path: Path) -> str:
    """Whole or not at all: of processes that start together the first one's counts."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f"{_FILE}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
    finally:
        draft.unlink()
    text = _read(path)
    assert text is not None
    return text
