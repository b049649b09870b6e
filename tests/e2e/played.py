"""What hosted APIs that tests play have in common."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

Server = TypeVar("Server", bound=ThreadingHTTPServer)


@contextmanager
def playing(server: Server) -> Iterator[Server]:
    """It answers until the end of the block."""
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def say(handler: BaseHTTPRequestHandler, status: int, answer: dict[str, Any]) -> None:
    """Answers with JSON."""
    data = json.dumps(answer).encode()
    handler.send_response(status)
    handler.send_header("content-type", "application/json")
    handler.send_header("content-length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


def chat(content: str, usage: dict[str, int]) -> dict[str, Any]:
    """A whole answer of ``/v1/chat/completions``."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    return {"object": "chat.completion", "choices": [choice], "usage": usage}
