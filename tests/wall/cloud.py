"""A hosted API on loopback that keeps every byte that reaches it, and answers with what it was asked."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class _Tee(io.RawIOBase):
    """Passes a socket's bytes on and writes them down."""

    def __init__(self, inner: Any, received: bytearray) -> None:
        self._inner = inner
        self._received = received

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = self._inner.readinto1(buffer) if hasattr(self._inner, "readinto1") else self._inner.readinto(buffer)
        self._received += bytes(buffer[:size])
        return int(size)


class Cloud:
    """``gate`` holds answers back while it isn't set."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Semaphore(0)
        cloud = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                self.rfile = io.BufferedReader(_Tee(self.rfile, cloud.received))  # type: ignore[assignment]

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                cloud.waiting.release()
                cloud.gate.wait(60)
                if self.path.endswith("/embeddings"):
                    self._send({"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}]})
                elif "prompt" in body:
                    choice = {"index": 0, "text": f"you said: {body['prompt']}", "finish_reason": "stop"}
                    self._send({"object": "text_completion", "choices": [choice]})
                else:
                    self._chat(body, f"you said: {body['messages'][-1]['content']}")

            def _chat(self, body: dict[str, Any], text: str) -> None:
                if not body.get("stream"):
                    message = {"role": "assistant", "content": text}
                    choice = {"index": 0, "message": message, "finish_reason": "stop"}
                    self._send({"object": "chat.completion", "choices": [choice]})
                    return
                deltas: list[dict[str, Any]] = [{"content": text[i : i + 3]} for i in range(0, len(text), 3)]
                choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
                choices.append({"index": 0, "delta": {}, "finish_reason": "stop"})
                chunks = [{"object": "chat.completion.chunk", "choices": [choice]} for choice in choices]
                data = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
                self._reply(data.encode(), "text/event-stream")

            def _send(self, values: dict[str, Any]) -> None:
                usage = {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
                self._reply(json.dumps({**values, "usage": usage}).encode(), "application/json")

            def _reply(self, data: bytes, kind: str) -> None:
                self.send_response(200)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    @contextmanager
    def serving(self) -> Iterator[Cloud]:
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.gate.set()
            self._server.shutdown()
            self._server.server_close()

    def saw(self, text: str) -> bool:
        return text.encode() in bytes(self.received)
