"""Plays ``vllm serve`` as a real process: same command line, same paths, as much of its life as tests need.

It writes what it was started with to ``$PLAY/starts.jsonl``, and reads from the same folder: ``words`` (said
on standard error), ``exit`` (ends with that status at once), ``silent`` (never answers), ``metrics`` (what
``/metrics`` says).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FOLDER = Path(os.environ["PLAY"])


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/health":
            self.answer(200, b"")
        elif self.path == "/metrics":
            file = FOLDER / "metrics"
            self.answer(200, file.read_bytes() if file.exists() else b"")
        else:
            self.answer(404, b"")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.headers["authorization"] != f"Bearer {os.environ['VLLM_API_KEY']}":
            self.answer(401, b'{"error": "Unauthorized"}')
        elif body.get("stream"):
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("connection", "close")
            self.end_headers()
            self.wfile.write(b'data: {"choices": [{"index": 0, "delta": {"content": "Hel"}}]}\n\n')
            self.wfile.flush()
            time.sleep(600)
        else:
            said = {"role": "assistant", "content": "Hello", "reasoning": None}
            answer = {"choices": [{"index": 0, "message": said, "finish_reason": "stop"}], "path": self.path}
            answer["usage"] = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
            self.answer(200, json.dumps(answer).encode())

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    core = subprocess.Popen(["sleep", "600"])  # vLLM's engine is a process of its own, too
    start = {"argv": sys.argv[1:], "environ": dict(os.environ), "pids": [os.getpid(), core.pid]}
    with (FOLDER / "starts.jsonl").open("a") as file:
        file.write(json.dumps(start) + "\n")
    if (FOLDER / "words").exists():
        sys.stderr.buffer.write((FOLDER / "words").read_bytes())
    if (FOLDER / "exit").exists():
        sys.exit(int((FOLDER / "exit").read_text()))
    if (FOLDER / "silent").exists():
        time.sleep(600)
    port = int(sys.argv[sys.argv.index("--port") + 1])
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main()
