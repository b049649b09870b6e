"""The Python client: ``from fabric import Client, AsyncClient``.

>>> client = Client()
>>> client.chat("Say hello.").text

The two clients share everything that does no I/O (``_client_wire``, ``_client_stream``).
"""

from fabric._client_async import AsyncBatch, AsyncClient, AsyncJob
from fabric._client_stream import Event, Piece
from fabric._client_sync import Batch, Client, Job
from fabric._client_wire import Answer, Mapped
from fabric.contracts.errors import FabricError

__all__ = [
    "Answer",
    "AsyncBatch",
    "AsyncClient",
    "AsyncJob",
    "Batch",
    "Client",
    "Event",
    "FabricError",
    "Job",
    "Mapped",
    "Piece",
]
