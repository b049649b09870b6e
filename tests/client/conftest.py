"""A small HTTP server that plays the fabric's API, real sockets and all."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

PLACEMENT = {
    "x-fabric-job-id": "job_1",
    "x-fabric-tier": "cpu",
    "x-fabric-deployment": "m-cpu",
    "x-fabric-attempts": "1",
    "x-fabric-cost-usd": "0.5",
    "x-fabric-queue-ms": "3",
}
REPORT = {
    "places": [
        {"tier": "cpu", "deployment": "m-cpu", "lines": 2, "input_tokens": 8, "output_tokens": 6, "cost_usd": 0.0}
    ],
    "input_tokens": 8,
    "output_tokens": 6,
    "cost_usd": 0.0,
    "seconds": {"p50": 0.5, "p95": 1.0},
    "elapsed_s": 2.0,
    "tokens_per_s": 3.0,
}
PLACE = {
    "deployment": "m-cpu",
    "tier": "cpu",
    "score": 0.0,
    "expected_cost_usd": 0.00002,
    "expected_finish_s": 2.5,
    "expected_first_token_s": None,
    "expected_wait_s": 0.25,
    "measured": True,
    "live": True,
}
DECISION = {
    "policy": "local-first",
    "policy_hash": "abc",
    "plan": [PLACE, {**PLACE, "deployment": "m-gpu", "live": False, "measured": False, "expected_wait_s": None}],
    "eliminated": [{"deployment": "m-cloud", "reason": "privacy", "detail": "not there"}],
}
#: A line separator as Unicode has it: no line end in server-sent events or JSON lines.
ODD = "one\u2028two"


def completion(text: str) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }


def error(message: str, code: str, type_: str = "invalid_request_error", param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": type_, "param": param, "code": code}}


@dataclass
class Api:
    """What the server was asked, and what tests tell it to do."""

    url: str = ""
    seen: list[tuple[str, str, dict[str, str], Any]] = field(default_factory=list)
    #: Answers given before the normal ones: (status, body, headers).
    refusals: list[tuple[int, dict[str, Any], dict[str, str]]] = field(default_factory=list)
    #: ``None``: the key may not see them.
    workers: list[dict[str, Any]] | None = field(default_factory=list)
    #: Events of every job, and after how many of them a connection breaks, one number per connection.
    events: list[dict[str, Any]] = field(default_factory=list)
    breaks: list[int] = field(default_factory=list)
    job: dict[str, Any] = field(default_factory=dict)
    routed: dict[str, Any] = field(
        default_factory=lambda: {"object": "route", "decision": DECISION, "chosen": PLACE, "error": None}
    )
    batch: dict[str, Any] = field(default_factory=dict)
    batches_by_key: dict[str, str] = field(default_factory=dict)
    #: Looks at the batch until it has ended.
    looks: int = 2
    files: dict[str, bytes] = field(default_factory=dict)

    def calls(self, method: str, path: str) -> list[tuple[dict[str, str], Any]]:
        return [(headers, body) for m, p, headers, body in self.seen if (m, p) == (method, path)]

    async def answer(self, request: Request) -> Response:
        raw = await request.body()
        is_json = request.headers.get("content-type", "").startswith("application/json")
        body = json.loads(raw) if raw and is_json else raw
        self.seen.append((request.method, request.url.path, dict(request.headers), body))
        if self.refusals:
            status, refusal, headers = self.refusals.pop(0)
            return JSONResponse(refusal, status, headers)
        match request.method, request.url.path.removeprefix("/v1/").split("/"):
            case "GET", ["models"]:
                return JSONResponse({"object": "list", "data": [{"id": "assistant"}, {"id": "other"}]})
            case "GET", ["tiers"]:
                return JSONResponse({"object": "list", "data": []})
            case "GET", ["workers"] if self.workers is None:
                return JSONResponse(error("not for you", "insufficient_scope", "permission_error"), 403)
            case "GET", ["workers"]:
                return JSONResponse({"object": "list", "data": self.workers})
            case "POST", ["chat", "completions"]:
                return self._chat(body)
            case "POST", ["route"]:
                return JSONResponse(self.routed)
            case "POST", ["jobs"]:
                return JSONResponse({"id": "job_1", "state": "queued"}, 202)
            case "GET", ["jobs"]:
                return self._jobs(request)
            case "GET", ["jobs", _]:
                return JSONResponse(self.job)
            case "GET", ["jobs", _, "events"]:
                return StreamingResponse(self._events(request), media_type="text/event-stream")
            case "POST", ["jobs", job_id, "cancel"]:
                return JSONResponse({"id": job_id, "state": "cancelled"})
            case "POST", ["files"]:
                self.files["file_in"] = raw
                return JSONResponse({"id": "file_in", "object": "file"})
            case "GET", ["files", file_id, "content"]:
                return Response(self.files[file_id])
            case "POST", ["batches"]:
                self.batches_by_key[request.headers["idempotency-key"]] = "batch_1"
                return JSONResponse(self.batch)
            case "GET", ["batches"]:
                return JSONResponse({"object": "list", "data": [self.batch], "has_more": False, "last_id": "batch_1"})
            case "GET", ["batches", _, "report"]:
                return JSONResponse(REPORT)
            case "GET", ["batches", _]:
                return self._batch()
            case "POST", ["batches", _, "cancel"]:
                return JSONResponse({**self.batch, "status": "cancelled"})
        return JSONResponse(error("There is no such route.", "not_found"), 404)

    def _chat(self, body: dict[str, Any]) -> Response:
        text = body["messages"][-1]["content"]
        if text == "fail":
            return JSONResponse(error("The prompt is too long.", "context_length_exceeded", param="messages"), 400)
        if not body.get("stream"):
            return JSONResponse(completion(text), headers=PLACEMENT)
        return StreamingResponse(self._chunks(text), media_type="text/event-stream")

    async def _chunks(self, text: str) -> AsyncIterator[bytes]:
        yield b": keep-alive\n\n"
        for part in text.split(" "):
            chunk = {"choices": [{"index": 0, "delta": {"content": part}}]}
            yield b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n"
        if text == "break off":
            return
        if text == "break down":
            yield b"data: " + json.dumps(error("The engine broke.", "stream_broken", "engine_error")).encode() + b"\n\n"
            return
        yield b"data: [DONE]\n\n"

    async def _events(self, request: Request) -> AsyncIterator[bytes]:
        first = int(request.headers.get("last-event-id", "0"))
        stop = self.breaks.pop(0) if self.breaks else len(self.events)
        for number, event in enumerate(self.events[first:stop], first + 1):
            yield f"id: {number}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n".encode()
            if event["type"] == "wait":
                while not await request.is_disconnected():
                    await asyncio.sleep(0.01)

    def _jobs(self, request: Request) -> Response:
        first, limit = int(request.query_params.get("cursor", 0)), int(request.query_params["limit"])
        jobs = [{"id": f"job_{n}", "state": "queued", "model": "assistant"} for n in range(250)]
        more = first + limit < len(jobs)
        page = {"object": "list", "data": jobs[first : first + limit], "has_more": more}
        return JSONResponse({**page, "next_cursor": str(first + limit) if more else None})

    def _batch(self) -> Response:
        self.looks -= 1
        if self.looks <= 0:
            self.batch = {
                **self.batch,
                "status": "completed",
                "output_file_id": "file_out",
                "error_file_id": "file_err",
            }
            self.batch["request_counts"] = {"total": 3, "completed": 2, "failed": 1}
        return JSONResponse(self.batch)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """The server, with ``FABRIC_URL`` leading to it."""
    api = Api(
        batch={
            "id": "batch_1",
            "status": "in_progress",
            "created_at": 0,
            "request_counts": {"total": 3, "completed": 0, "failed": 0},
        },
        files={
            "file_out": f'{{"custom_id":"a","text":"{ODD}"}}\n{{"custom_id":"b"}}\n'.encode(),
            "file_err": b'{"custom_id":"c"}',
        },
    )
    routes = [Route("/{path:path}", api.answer, methods=["GET", "POST", "DELETE"])]
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    api.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    monkeypatch.setenv("FABRIC_URL", api.url)
    monkeypatch.delenv("FABRIC_API_KEY", raising=False)
    yield api
    server.should_exit = True
    thread.join()
