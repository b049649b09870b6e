"""Where a webhook may lead: to public addresses, checked when the connection is made.

A name is looked up once, all that it stands for is checked, and the connection goes to one of the checked addresses:
so a name can't be public when it is checked and private when it is used. TLS is still checked against the name.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import httpcore
import httpx

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
#: Host and port -> addresses.
Resolve = Callable[[str, int], Awaitable[list[str]]]

#: IPv6 ranges whose addresses hold an IPv4 address that a gateway leads to.
_TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")


class ForbiddenAddress(httpcore.ConnectError):
    """The receiver's address is none that events may be sent to."""


def is_public(address: str) -> bool:
    """Whether it is an address of the public internet, whatever it is wrapped in."""
    return all(one.is_global and not one.is_multicast and not one.is_reserved for one in _inside(address))


def _inside(text: str) -> list[_Address]:
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    found: list[_Address] = [] if address.ipv4_mapped else [address]
    if address in _TRANSLATED:
        found = [ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)]
    teredo = address.teredo
    wrapped = (address.ipv4_mapped, address.sixtofour, *(teredo or ()))
    return found + [one for one in wrapped if one is not None]


async def resolve(host: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class _Guarded(httpcore.AsyncNetworkBackend):
    """Connects to checked addresses only."""

    def __init__(self, allow_private: bool, resolve: Resolve) -> None:
        self._allow_private = allow_private
        self._resolve = resolve
        self._below = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            addresses = await self._resolve(host, port)
        except OSError:
            raise httpcore.ConnectError("the receiver's name can't be looked up") from None
        if not self._allow_private and not all(map(is_public, addresses)):
            raise ForbiddenAddress("the receiver's address isn't public; `allow_private: true` would permit it")
        failure: Exception = httpcore.ConnectError("the receiver's name stands for no address")
        for address in addresses:
            try:
                return await self._below.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def sleep(self, seconds: float) -> None:
        await self._below.sleep(seconds)


class Transport(httpx.AsyncHTTPTransport):
    """httpx's own, over guarded connections."""

    def __init__(self, *, allow_private: bool, resolve: Resolve = resolve) -> None:
        super().__init__(trust_env=False)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=httpx.create_ssl_context(trust_env=False),
            max_connections=8,
            keepalive_expiry=5.0,
            network_backend=_Guarded(allow_private, resolve),
        )
