"""OpenAI's Batch API and Anthropic's Message Batches, played by a real HTTP server on loopback with a memory.

Well-behaved unless told otherwise: batches stay ``in_progress`` until ``release`` is set, then every request is
answered. Every object that it sends is checked against the types of the official SDKs.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson
from anthropic.types.messages import MessageBatch, MessageBatchIndividualResponse
from openai.types import Batch, FileObject

USAGE = {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150}


@dataclass
class Made:
    """A batch. ``requests``: custom_id -> body."""

    id: str
    requests: dict[str, dict[str, Any]]
    endpoint: str
    metadata: dict[str, str]
    input_file: str
    created: float = field(default_factory=time.time)
    status: str = "in_progress"
    errors: list[dict[str, Any]] = field(default_factory=list)


class FakeBatches:
    """``answer``: custom_id and body -> a result, in place of the usual one; ``None`` leaves the line out.

    ``refusals`` are used up one a request: (method, beginning of the path) -> (status, body, headers), status 0 for
    a connection that is cut. ``after`` of a refusal says that what was asked for is done all the same.
    """

    def __init__(self, port: int = 0) -> None:
        self.release = threading.Event()
        self.ends_as = "completed"
        self.batches: dict[str, Made] = {}
        self.files: dict[str, bytes] = {}
        self.deleted: list[str] = []
        self.cancelled: list[str] = []
        self.seen: list[tuple[str, str]] = []
        self.sync_calls = 0
        self.refusals: list[tuple[str, str, int, Any, dict[str, str], bool]] = []
        self.answer: Callable[[str, dict[str, Any]], Any] = self.usual
        self.extra_lines: list[bytes] = []
        self.cut_results_at: list[int] = []
        self.validate: Callable[[Made], list[dict[str, Any]]] = lambda made: []
        self._numbers: Iterator[int] = itertools.count(1)
        self._lock = threading.Lock()
        self.changed = threading.Condition()

        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                fake._serve(self)

            do_GET = do_POST = do_DELETE = _serve

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def refuse(
        self, method: str, path: str, status: int, body: Any = None, *, after: bool = False, **headers: str
    ) -> None:
        self.refusals.append((method, path, status, body or {}, headers, after))

    def until(self, condition: Callable[[], object], timeout_s: float = 30) -> None:
        """Waits for it, looking whenever a request has been served."""
        with self.changed:
            assert self.changed.wait_for(condition, timeout_s), "it never came true"

    def count(self, method: str, path: str) -> int:
        return sum(1 for seen in self.seen if seen[0] == method and seen[1].startswith(path))

    @staticmethod
    def usual(custom_id: str, body: dict[str, Any]) -> Any:
        return {"status_code": 200, "request_id": "req_1", "body": completion(f"echo {custom_id}")}

    # What is served.

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("content-length") or 0))
        whole, path = handler.path, handler.path.removeprefix("/v1")
        refusal = None
        with self._lock:
            for n, one in enumerate(self.refusals):
                if one[0] == handler.command and path.startswith(one[1]):
                    refusal = self.refusals.pop(n)
                    break
        kind = handler.headers.get("content-type", "")
        answer: Any = None
        if refusal is None or refusal[5]:
            with self._lock:
                # As at both providers, there is nothing beside /v1.
                answer = self._answer(handler.command, path.partition("?")[0], body, kind) if path != whole else None
        with self.changed:
            self.seen.append((handler.command, path))
            self.changed.notify_all()
        if refusal is not None:
            if refusal[2] == 0:
                handler.close_connection = True
                handler.connection.close()
                return
            self._send(handler, refusal[2], orjson.dumps(refusal[3]), "application/json", refusal[4])
        elif answer is None:
            self._send(handler, 404, orjson.dumps({"error": {"message": "no such thing", "code": "not_found"}}))
        elif isinstance(answer, bytes):
            self._send_file(handler, answer)
        else:
            self._send(handler, 200, orjson.dumps(answer))

    def _send(
        self,
        handler: BaseHTTPRequestHandler,
        status: int,
        body: bytes,
        kind: str = "application/json",
        headers: dict[str, str] | None = None,
    ) -> None:
        handler.send_response(status)
        for name, value in {"content-type": kind, "content-length": str(len(body)), **(headers or {})}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    def _send_file(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        cut = self.cut_results_at.pop(0) if self.cut_results_at else len(body)
        handler.send_response(200)
        handler.send_header("content-type", "application/octet-stream")
        handler.send_header("content-length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[:cut])
        handler.wfile.flush()
        if cut < len(body):
            handler.close_connection = True

    def _answer(self, method: str, path: str, body: bytes, kind: str) -> Any:
        parts = path.strip("/").split("/")
        match method, parts:
            case "POST", ["chat", "completions"]:
                self.sync_calls += 1
                return completion("at once")
            case "POST", ["files"]:
                return self._upload(body, kind)
            case "GET", ["files", file, "content"]:
                return self._content(file)
            case "DELETE", ["files", file]:
                self.deleted.append(file)
                return {"id": file, "object": "file", "deleted": True}
            case "POST", ["batches"]:
                return self._shown(self._make(orjson.loads(body)))
            case "GET", ["batches"]:
                data = [self._shown(made) for made in reversed(self.batches.values())]
                return {"object": "list", "data": data, "has_more": False}
            case "GET", ["batches", batch]:
                return self._shown(self.batches[batch]) if batch in self.batches else None
            case "POST", ["batches", batch, "cancel"]:
                return self._shown(self._cancel(batch))
            case "POST", ["messages", "batches"]:
                requests = {one["custom_id"]: one["params"] for one in orjson.loads(body)["requests"]}
                made = Made(f"msgbatch_{next(self._numbers):04}", requests, "", {}, "")
                self.batches[made.id] = made
                return self._message_batch(made)
            case "GET", ["messages", "batches"]:
                data = [self._message_batch(made) for made in reversed(self.batches.values())]
                return {"data": data, "has_more": False, "first_id": None, "last_id": None}
            case "GET", ["messages", "batches", batch]:
                return self._message_batch(self.batches[batch]) if batch in self.batches else None
            case "POST", ["messages", "batches", batch, "cancel"]:
                return self._message_batch(self._cancel(batch))
            case "DELETE", ["messages", "batches", batch]:
                self.deleted.append(batch)
                return {"id": batch, "type": "message_batch_deleted"}
            case "GET", ["messages", "batches", batch, "results"]:
                return self._message_results(self.batches[batch])
        return None

    # OpenAI.

    def _upload(self, body: bytes, kind: str) -> dict[str, Any]:
        boundary = kind.partition("boundary=")[2].encode()
        parts = [part.partition(b"\r\n\r\n") for part in body.split(b"--" + boundary)[1:-1]]
        values = {head.partition(b'name="')[2].partition(b'"')[0].decode(): value[:-2] for head, _, value in parts}
        assert values["purpose"] == b"batch"
        file = f"file-{next(self._numbers):04}"
        self.files[file] = values["file"]
        shown = {
            "id": file,
            "object": "file",
            "bytes": len(values["file"]),
            "created_at": 1,
            "filename": "f.jsonl",
            "purpose": "batch",
            "status": "processed",
        }
        FileObject.model_validate(shown, strict=True)
        return shown

    def _make(self, asked: dict[str, Any]) -> Made:
        assert asked["completion_window"] == "24h"
        lines = [orjson.loads(line) for line in self.files[asked["input_file_id"]].splitlines() if line]
        assert all(line["method"] == "POST" and line["url"] == asked["endpoint"] for line in lines)
        requests = {line["custom_id"]: line["body"] for line in lines}
        assert len(requests) == len(lines)
        made = Made(
            f"batch_{next(self._numbers):04}", requests, asked["endpoint"], asked["metadata"], asked["input_file_id"]
        )
        made.errors = self.validate(made)
        if made.errors:
            made.status = "failed"
        self.batches[made.id] = made
        return made

    def _state(self, made: Made) -> str:
        if made.status == "in_progress" and self.release.is_set():
            made.status = self.ends_as
        return made.status

    def _cancel(self, batch: str) -> Made:
        made = self.batches[batch]
        self.cancelled.append(batch)
        if self._state(made) == "in_progress":
            made.status = "cancelled"
        return made

    def _shown(self, made: Made) -> dict[str, Any]:
        status = self._state(made)
        ended = status in ("completed", "expired", "cancelled")
        shown = {
            "id": made.id,
            "object": "batch",
            "endpoint": made.endpoint,
            "errors": {"object": "list", "data": made.errors} if made.errors else None,
            "input_file_id": made.input_file,
            "completion_window": "24h",
            "status": status,
            "output_file_id": f"out-{made.id}" if ended else None,
            "error_file_id": f"err-{made.id}" if ended else None,
            "created_at": int(made.created),
            "request_counts": {"total": len(made.requests), "completed": 0, "failed": 0},
            "metadata": made.metadata,
        }
        Batch.model_validate(shown)
        return shown

    def _content(self, file: str) -> bytes:
        kind, _, batch = file.partition("-")
        made = self.batches[batch]
        lines = []
        for custom_id, body in made.requests.items():
            result = self.answer(custom_id, body)
            if result is None:
                continue
            line = {"id": f"batch_req_{custom_id}", "custom_id": custom_id, "response": None, "error": None}
            failed = "code" in result or result["status_code"] != 200
            line["error" if "code" in result else "response"] = result
            if failed == (kind == "err"):
                lines.append(orjson.dumps(line))
        if kind == "out":
            lines += self.extra_lines
        return b"".join(line + b"\n" for line in lines)

    # Anthropic.

    def _message_batch(self, made: Made) -> dict[str, Any]:
        status = self._state(made)
        counts = dict.fromkeys(("processing", "succeeded", "errored", "canceled", "expired"), 0)
        counts["processing" if status == "in_progress" else "succeeded"] = len(made.requests)
        created = datetime.fromtimestamp(made.created, UTC)
        shown = {
            "id": made.id,
            "type": "message_batch",
            "processing_status": "in_progress" if status == "in_progress" else "ended",
            "request_counts": counts,
            "created_at": created.isoformat().replace("+00:00", "Z"),
            "expires_at": created.isoformat(),
            "ended_at": None,
            "results_url": None if status == "in_progress" else "https://elsewhere.example/results",
            "archived_at": None,
            "cancel_initiated_at": None,
        }
        MessageBatch.model_validate(shown)
        return shown

    def _message_results(self, made: Made) -> bytes:
        lines = []
        for custom_id, body in made.requests.items():
            result = self.answer(custom_id, body)
            if result is None:
                continue
            if "status_code" in result:
                result = {"type": "succeeded", "message": message(f"echo {custom_id}")}
            line = {"custom_id": custom_id, "result": result}
            MessageBatchIndividualResponse.model_validate(line)
            lines.append(orjson.dumps(line))
        return b"".join(line + b"\n" for line in [*lines, *self.extra_lines])


def completion(text: str) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": "big", "choices": [choice], "usage": USAGE}


def message(text: str) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude",
        "content": [{"type": "text", "text": text}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 100, "output_tokens": 50},
    }
