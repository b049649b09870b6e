"""Authorities of one's own for the servers that the fabric connects to."""

from __future__ import annotations

import ssl
from pathlib import Path
from urllib.parse import quote

from fabric.contracts.errors import ConfigError

_SCHEMES = ("rediss://", "amqps://")


def with_ca(url: str, ca: Path | None, setting: str) -> str:
    """The URL with the file in it, where whoever connects finds it: ``ssl_ca_certs``, as redis-py calls it.

    Raises:
        ConfigError: the file is no use, or the URL is none of TLS.
    """
    if ca is None:
        return url
    if not url.startswith(_SCHEMES):
        raise ConfigError(f"{setting} is for {' and '.join(_SCHEMES)}, and the URL isn't one: unset it, or use TLS.")
    path = ca.expanduser().absolute()
    try:
        ssl.create_default_context(cafile=path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, FileNotFoundError | PermissionError) else type(error).__name__
        raise ConfigError(f"{setting}: {path} can't be used: {reason}. It is a PEM file of certificates.") from None
    return f"{url}{'&' if '?' in url else '?'}ssl_ca_certs={quote(str(path))}"
