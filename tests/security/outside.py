"""What the fabric talks to, on one port: hosted APIs that go wrong in every way and repeat what they were told, a
collector of traces, a receiver of webhooks."""

from __future__ import annotations

import gzip
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: Longer than any deployment here waits.
HANGS_S = 8.0


class Outside(ThreadingHTTPServer):
    """``answer``: what models say. The model's name says how it goes wrong: ``e429``, ``cut``, ``hang`` and so on."""

    daemon_threads = True

    def __init__(self, answer: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.traces = b""
        self.hooks: list[bytes] = []
        self.served: list[str] = []
        self.ended = threading.Event()

    def handle_error(self, *_: object) -> None:
        """Whoever was impatient has hung up."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Outside
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/v1/traces":
            self.server.traces += gzip.decompress(data) if self.headers.get("content-encoding") == "gzip" else data
            return self._say(200, b"{}")
        if self.path == "/hook":
            self.server.hooks.append(data)
            # Refused once, with its own words said back: it comes again.
            return self._say(200 if len(self.server.hooks) > 1 else 500, data)
        asked = json.loads(data)
        self.server.served.append(asked["model"])
        # Whatever it was told is said back where errors are read: the prompt and the key.
        said = f"wrong: {asked.get('messages')} {self.headers.get('authorization')} {self.headers.get('x-api-key')}"
        how = asked["model"]
        if how.startswith("e") and how[1:4].isdecimal():
            return self._say(int(how[1:4]), _error(said, how[5:] or None))
        if how == "html":
            return self._say(502, f"<html>{said}</html>".encode())
        if how == "redirect":
            return self._say(307, said.encode(), location=f"{self.server.url}/elsewhere?{said[:40].replace(' ', '')}")
        if how == "nonsense":
            return self._say(200, said.encode())
        if how == "error-event":
            return self._say(200, _error(said, None))
        if how == "hang":
            self.server.ended.wait(HANGS_S)
            return self._say(500, _error(said, None))
        whole = json.dumps(self._message(said, how)).encode()
        if how == "truncated":
            return self._say(200, whole[: len(whole) // 2])
        if how in ("cut", "cut-stream", "bad-event", "bad-chunk"):
            return self._cut(how, said, bool(asked.get("stream")))
        return self._say(200, whole)

    def _message(self, said: str, how: str) -> dict[str, Any]:
        content = f"{self.server.answer} {said}"
        if self.path.endswith("/messages"):
            usage = {"input_tokens": 3, "output_tokens": 2}
            ending = "refusal" if how == "refusal" else "end_turn"
            return {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "model": how,
                "content": [{"type": "text", "text": content}],
                "stop_reason": ending,
                "usage": usage,
            }
        refused = how == "refusal"
        message = {
            "role": "assistant",
            "content": None if refused else content,
            "refusal": content if refused else None,
        }
        choice = {"index": 0, "message": message, "finish_reason": "content_filter" if refused else "stop"}
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        return {"id": "c", "object": "chat.completion", "created": 1, "model": how, "choices": [choice], "usage": usage}

    def _cut(self, how: str, said: str, stream: bool) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream" if stream else "application/json")
        self.send_header("content-length", "100000")
        self.end_headers()
        delta = {"index": 0, "delta": {"content": f"{self.server.answer} {said}"}, "finish_reason": None}
        chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": how, "choices": [delta]}
        lines = [f"data: {json.dumps(chunk)}\n\n"]
        if how == "bad-event":
            lines.append(f"data: {json.loads(_error(said, None))}\n\n")
        if how == "bad-chunk":
            lines.append(f'data: {{"choices": "{self.server.answer}"}}\n\n')
        for line in lines if stream else [json.dumps(chunk)[:40]]:
            self.wfile.write(line.encode())
            self.wfile.flush()
            time.sleep(0.05)
        self.close_connection = True

    def _say(self, status: int, data: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"content-type": "application/json", "content-length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def _error(said: str, code: str | None) -> bytes:
    return json.dumps({"error": {"message": said, "type": "invalid_request_error", "code": code}}).encode()
