"""Who is told of ends: ``python -m storm.receiver PORT LOG``.

It writes down each event before it answers, and refuses one in ten, so that some come again.
"""

from __future__ import annotations

import json
import os
import sys
from itertools import count
from pathlib import Path
from typing import Any

import uvicorn

_REFUSED = 10


class Receiver:
    """The ASGI application."""

    def __init__(self, log: Path) -> None:
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._numbers = count(1)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        status = 503 if next(self._numbers) % _REFUSED == 0 else 204
        headers = {name.decode(): value.decode() for name, value in scope["headers"] if name.startswith(b"webhook-")}
        note = {"path": scope["path"], "headers": headers, "body": body.decode(), "status": status}
        os.write(self._log, json.dumps(note).encode() + b"\n")
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


if __name__ == "__main__":
    _, port, log = sys.argv
    uvicorn.run(
        Receiver(Path(log)), host="127.0.0.1", port=int(port), log_level="warning", lifespan="off", loop="uvloop"
    )
