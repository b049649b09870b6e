"""Where the API listens, and who could reach it there."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

from fabric.contracts.errors import ConfigError

_BACKLOG = 2_048
_Address = tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[Any, ...]]


def only_loopback(host: str, *, allow_open: bool = False) -> None:
    """``allow_open``: the operator has said that strangers are kept out in another way.

    Raises:
        ConfigError: other machines could reach ``host``, and the fabric has no keys to tell callers apart.
    """
    if allow_open:
        return
    for _, _, _, _, address in _addresses(host, 0):
        if not str(address[0]).startswith("127.") and address[0] != "::1":
            raise ConfigError(
                f"FABRIC_HOST is {host}: everyone who reaches this machine could use the fabric, as it has "
                "no API keys. Listen on 127.0.0.1, and put a proxy that checks who comes in front of it; or, where "
                "a port mapping or a network policy keeps strangers out, set FABRIC_ALLOW_OPEN=1."
            )


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


def url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _addresses(host: str, port: int) -> Sequence[_Address]:
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror:
        raise ConfigError(f"FABRIC_HOST is {host}, which is no address of this machine; 127.0.0.1 is one.") from None
