"""Where a worker's zone keys and a scheduler's come from: ``FABRIC_ZONE_KEYS``, ``FABRIC_ZONE_KEYS_FILE``, else the
fabric's secret where the process has that."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace
from pathlib import Path

from fabric.contracts.errors import ConfigError
from fabric.contracts.secret import Secrets
from fabric.contracts.signed import Signer
from fabric.contracts.zones import WorkerKeys
from fabric.settings.secret import kept_secret
from fabric.settings.settings import Settings


def worker_keys(settings: Settings, zones: Set[str]) -> WorkerKeys:
    """Keys of these zones and no others. The secret itself isn't kept.

    Raises:
        ConfigError: there are none, or not of all these zones.
    """
    if text := settings.zone_keys or _of_file(settings.zone_keys_file):
        held = WorkerKeys.parse(text)
        if missing := sorted(zones - held.zones):
            raise ConfigError(f"FABRIC_ZONE_KEYS holds no key of zone {missing[0]}, which this worker is in. {_HOW}")
        return replace(held, keys=tuple(key for key in held.keys if key.zone in zones))
    secret = kept_secret(settings)
    if secret is None:
        raise ConfigError(f"This worker has no key to open its jobs with: set FABRIC_ZONE_KEYS. {_HOW}")
    return WorkerKeys.of(Secrets.parse(secret), zones)


def scheduler_keys(settings: Settings) -> Signer:
    """
    Raises:
        ConfigError: there are none.
    """
    if text := settings.zone_keys or _of_file(settings.zone_keys_file):
        return Signer.parse(text)
    secret = kept_secret(settings)
    if secret is None:
        raise ConfigError(
            "This scheduler has no key to sign its messages with: set FABRIC_ZONE_KEYS. `fabric security zone-keys "
            "scheduler`, run where the API has its secret, prints it."
        )
    return Signer.of(Secrets.parse(secret))


def _of_file(path: Path | None) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace") if path else None
    except OSError as error:
        raise ConfigError(f"The zone keys in {path} can't be read ({error.strerror}). {_HOW}") from None


_HOW = "`fabric security zone-keys ZONE`, run where the API has its secret, prints it."
