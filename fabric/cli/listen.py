"""Where the API listens, who could reach it there, and what it speaks."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fabric.contracts.errors import ConfigError
from fabric.settings import Settings

_BACKLOG = 2_048
_Address = tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[Any, ...]]


def guarded(settings: Settings, has_keys: Callable[[], bool]) -> None:
    """Beyond loopback the API wants keys and TLS, unless the operator has said that strangers, and listeners on
    the way, are kept out in another way.

    Raises:
        ConfigError: they aren't; or the certificate can't be used.
        Unavailable: the ledger is away, so nobody can say whether there are keys.
    """
    tls = certificate(settings)
    if only_loopback(settings.host):
        return
    if not (settings.allow_open or has_keys()):
        raise ConfigError(
            f"FABRIC_HOST is {settings.host}: everyone who reaches this machine could use the fabric, as it has "
            "no API keys. Make one with `fabric keys create`, or listen on 127.0.0.1; or, where a port mapping or a "
            "network policy keeps strangers out, set FABRIC_ALLOW_OPEN=1."
        )
    if not (tls or settings.allow_plaintext):
        raise ConfigError(
            f"FABRIC_HOST is {settings.host}: keys, prompts and answers would cross the network in plain text. "
            "Set FABRIC_TLS_CERT and FABRIC_TLS_KEY; or, where a proxy in front of it speaks TLS, "
            "FABRIC_ALLOW_PLAINTEXT=1; or listen on 127.0.0.1."
        )


def only_loopback(host: str) -> bool:
    """Whether nobody but this machine can reach ``host``.

    Raises:
        ConfigError: it is no address.
    """
    reached = [str(address[0]) for _, _, _, _, address in _addresses(host, 0)]
    return all(address.startswith("127.") or address == "::1" for address in reached)


def any_keys(settings: Settings) -> bool:
    """Whether a key was ever made. Raises ``Unavailable``."""
    from contextlib import closing

    from fabric.cli.on_ledger import has_tables
    from fabric.ledger import Ledger, keys

    if not has_tables(settings.database_url):
        return False
    with closing(Ledger(settings.database_url, connections=1)) as ledger:
        return ledger.read(keys.some)


def certificate(settings: Settings) -> tuple[Path, Path] | None:
    """Certificate and key, tried out; ``None`` where the API speaks plain HTTP.

    Raises:
        ConfigError: one is missing, or they can't be used.
    """
    cert, key = settings.tls_cert, settings.tls_key
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise ConfigError("FABRIC_TLS_CERT and FABRIC_TLS_KEY belong together: set both or none.")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password="")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, FileNotFoundError | PermissionError) else type(error).__name__
        raise ConfigError(
            f"The certificate {cert} can't be used with the key {key}: {reason}. Both are PEM files, the key without "
            "a passphrase."
        ) from None
    return cert, key


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        ConfigError: the address isn't this machine's, or the port is taken.
    """
    family, kind, protocol, _, address = _addresses(host, port)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"Can't listen on {host}, port {port}: {(error.strerror or 'refused').lower()}. "
            "Stop what uses it, or choose another with --port or FABRIC_PORT."
        ) from None
    return listener


def url(listener: socket.socket, *, tls: bool = False) -> str:
    host, port = listener.getsockname()[:2]
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _addresses(host: str, port: int) -> Sequence[_Address]:
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror:
        raise ConfigError(f"FABRIC_HOST is {host}, which is no address of this machine; 127.0.0.1 is one.") from None
