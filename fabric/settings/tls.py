"""TLS to the servers that the fabric connects to: authorities of one's own, and what it shows of itself."""

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
    _speaks_tls(url, setting)
    path = ca.expanduser().absolute()
    try:
        ssl.create_default_context(cafile=path)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{setting}: {path} can't be used: {_reason(error)}. It is a PEM file of certificates."
        ) from None
    return _with(url, ssl_ca_certs=path)


def with_certificate(url: str, cert: Path | None, key: Path | None, prefix: str) -> str:
    """The URL with what this process shows of itself, ``ssl_certfile`` and ``ssl_keyfile``. ``prefix``: of settings.

    Raises:
        ConfigError: one is missing, they are no use, or the URL is none of TLS.
    """
    if cert is None and key is None:
        return url
    if cert is None or key is None:
        raise ConfigError(f"{prefix}_CERT and {prefix}_KEY belong together: set both or none.")
    _speaks_tls(url, f"{prefix}_CERT")
    cert, key = cert.expanduser().absolute(), key.expanduser().absolute()
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(cert, key, password="")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{prefix}_CERT: {cert} can't be used with the key {key}: {_reason(error)}. Both are PEM files, the key "
            "without a passphrase."
        ) from None
    return _with(url, ssl_certfile=cert, ssl_keyfile=key)


def _speaks_tls(url: str, setting: str) -> None:
    if not url.startswith(_SCHEMES):
        raise ConfigError(f"{setting} is for {' and '.join(_SCHEMES)}, and the URL isn't one: unset it, or use TLS.")


def _reason(error: OSError | ValueError) -> str:
    return str(error.strerror) if isinstance(error, FileNotFoundError | PermissionError) else type(error).__name__


def _with(url: str, **files: Path) -> str:
    said = "&".join(f"{name}={quote(str(path))}" for name, path in files.items())
    return f"{url}{'&' if '?' in url else '?'}{said}"
