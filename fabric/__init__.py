"""One fabric in front of every place where a model can run.

>>> from fabric import Client
>>> Client().chat("Say hello.").text
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fabric.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: the servers and the command line need no HTTP client.
    if name in __all__:
        from fabric import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
