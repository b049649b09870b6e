"""The mock engine behind a bare HTTP server: what one request costs without the fabric.

    python -m benchmarks.bare_server

The same server (uvicorn on uvloop with httptools), one raw Starlette route, no checks, no queue. Prints its port.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from benchmarks.processes import Void, module
from fabric.contracts.catalog import Deployment
from fabric.contracts.job import Endpoint
from workers.engines.engine import Request
from workers.engines.mock import MockEngine

PATH: Endpoint = "/v1/chat/completions"


class Answering:
    """An ASGI application as a class: Starlette passes the raw connection on to it."""

    def __init__(self) -> None:
        self._engine = MockEngine(Deployment(name="mock", engine="mock", tier="cpu"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        request = Request("job_bare", PATH, orjson.loads(body), stream=False)
        answer = await self._engine.run(request, lambda chunk: None)
        content = orjson.dumps({"id": "chatcmpl-bare", "model": "mock", **answer.body})
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})


@contextmanager
def bare_server() -> Iterator[str]:
    """Runs one; answers its address."""
    with module("benchmarks.bare_server", stdout=subprocess.PIPE, stderr=None) as process:
        assert process.stdout
        line = process.stdout.readline()
        if not line:
            raise Void("the bare server didn't start")
        yield f"127.0.0.1:{int(line)}"


def main() -> None:
    app = Starlette(routes=[Route(PATH, Answering(), methods=["POST"])])
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    print(listener.getsockname()[1], flush=True)
    config = uvicorn.Config(
        app, loop="uvloop", http="httptools", ws="none", log_config=None, access_log=False, server_header=False
    )
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
