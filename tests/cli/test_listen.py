"""Where the API may listen."""

from __future__ import annotations

import socket

import pytest

from fabric.cli import listen
from fabric.contracts.errors import ConfigError


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost"])
def test_loopback_is_open(host: str) -> None:
    listen.only_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_everything_else_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match=r"as it has no API keys\. Listen on 127\.0\.0\.1"):
        listen.only_loopback(host)
    listen.only_loopback(host, allow_open=True)


def test_a_name_that_leads_nowhere_is_named() -> None:
    with pytest.raises(ConfigError, match=r"FABRIC_HOST is no\.such\.host\.invalid, which is no address"):
        listen.only_loopback("no.such.host.invalid")


def test_port_0_takes_a_free_one() -> None:
    with listen.bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert listen.url(listener) == f"http://127.0.0.1:{port}"
        socket.create_connection(("127.0.0.1", port)).close()
        with pytest.raises(ConfigError, match=f"port {port}: address already in use. Stop what uses it"):
            listen.bind("127.0.0.1", port)
