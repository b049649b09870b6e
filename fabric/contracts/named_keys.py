"""Keys with the names of whose they are, on one line: ``NAME:KEY,NAME:KEY,…``. What ``FABRIC_ZONE_KEYS`` holds."""

from __future__ import annotations

import base64
from collections.abc import Iterable

from fabric.contracts.errors import ConfigError

#: Bytes of a key, X25519's and Ed25519's alike.
KEY = 32


def dump(pairs: Iterable[tuple[str, bytes]]) -> str:
    return ",".join(f"{name}:{base64.urlsafe_b64encode(key).decode().rstrip('=')}" for name, key in pairs)


def parse(text: str) -> list[tuple[str, bytes]]:
    """In their order. Nothing of ``text`` is in the error.

    Raises:
        ConfigError: it isn't what ``dump`` makes.
    """
    try:
        return [(name.strip(), _raw(value)) for name, value in (part.split(":") for part in text.split(","))]
    except ValueError:
        raise unreadable() from None


def unreadable() -> ConfigError:
    return ConfigError(
        "FABRIC_ZONE_KEYS can't be read: it must be what `fabric security zone-keys` prints, on one line."
    )


def _raw(value: str) -> bytes:
    raw = base64.b64decode(value.strip() + "=", altchars=b"-_", validate=True)
    if len(raw) != KEY:
        raise ValueError
    return raw
