"""What is sent for a job: OpenAI bodies and chunks made from the engine's by splicing bytes.

Engines answer without ``id`` and ``model``: those are the fabric's words. Nothing is decoded on the
way but the final event. Whole answers are made in ``fabric.contracts.answer``, for batches too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from fabric.contracts.answer import answer_id, packed, whole
from fabric.contracts.errors import EngineError, ErrorInfo
from fabric.contracts.job import Endpoint, JobState
from fabric.gateway.follow import Event

__all__ = ["DONE", "Chunks", "Ending", "answer_id", "openai_usage", "packed", "placement", "whole"]

_CHUNK_OBJECT = {"/v1/chat/completions": "chat.completion.chunk", "/v1/completions": "text_completion"}
_TOKEN_EVENT = len(b'{"type":"token","chunk":')

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Ending:
    """The final event, decoded. Times: milliseconds since the epoch on the store's clock."""

    state: JobState
    attempt: int
    tier: str
    deployment: str
    cost_usd: float
    queue_ms: int
    usage: dict[str, int]
    accepted_ms: int
    error: ErrorInfo | None

    @classmethod
    def of(cls, event: Event) -> Ending:
        values = orjson.loads(event.body)
        attempt, measures = values["attempt"], values["measures"] or {}
        state = JobState(values["type"])
        error = ErrorInfo(**attempt["error"]) if attempt["error"] else None
        if error is None and state is not JobState.SUCCEEDED:
            error = EngineError(f"The job ended as {state} without a reason.").info
        return cls(
            state=state,
            attempt=attempt["number"],
            tier=attempt["tier"] or "none",
            deployment=attempt["deployment"] or "none",
            # Of the last attempt, and of those before it.
            cost_usd=measures.get("cost_usd", 0.0) + values.get("spent_usd", 0.0),
            queue_ms=(attempt["claimed_ms"] or attempt["ended_ms"]) - values["accepted_ms"],
            usage=measures.get("usage", {}),
            accepted_ms=values["accepted_ms"],
            error=error,
        )

    def headers(self, job_id: str) -> list[tuple[bytes, bytes]]:
        headers = [
            *placement(job_id, self.tier, self.deployment, self.attempt, self.queue_ms),
            (b"x-fabric-cost-usd", _decimal(self.cost_usd)),
        ]
        if self.error is not None:
            headers.append((b"x-fabric-fault", self.error.fault.encode()))
        return headers


def placement(job_id: str, tier: str, deployment: str, attempt: int, queue_ms: int) -> list[tuple[bytes, bytes]]:
    return [
        (b"x-fabric-job-id", job_id.encode()),
        (b"x-fabric-tier", tier.encode()),
        (b"x-fabric-deployment", deployment.encode()),
        (b"x-fabric-attempts", b"%d" % attempt),
        (b"x-fabric-queue-ms", b"%d" % queue_ms),
    ]


def _decimal(value: float) -> bytes:
    """No exponent: not every reader of a header knows ``1e-06``."""
    return f"{value:.9f}".rstrip("0").rstrip(".").encode() if value else b"0"


class Chunks:
    """Server-sent events of one streamed answer. ``usage``: whether the caller asked for the usage chunk."""

    def __init__(self, endpoint: Endpoint, job_id: str, model: str, created: int, *, usage: bool) -> None:
        self._head = {
            "id": answer_id(endpoint, job_id),
            "object": _CHUNK_OBJECT[endpoint],
            "created": created,
            "model": model,
        }
        self._usage = usage
        named = orjson.dumps({"id": self._head["id"], "model": model})[:-1]
        self._prefix = b"data: " + named + b","
        self._created = b'"created":%d,' % created
        self._no_usage = b'"usage":null,' if usage else b""

    def chunk(self, event: Event) -> bytes:
        """A token event as the caller gets it."""
        chunk = event.body[_TOKEN_EVENT:-1]
        created = b"" if b'"created":' in chunk else self._created
        return self._prefix + created + self._no_usage + chunk[1:] + b"\n\n"

    def end(self, ending: Ending) -> bytes:
        if ending.error is not None:
            return b"data: " + orjson.dumps(ending.error.body()) + b"\n\n"
        if not self._usage:
            return DONE
        usage = openai_usage(ending.usage)
        return b"data: " + orjson.dumps({**self._head, "choices": [], "usage": usage}) + b"\n\n" + DONE


def openai_usage(usage: dict[str, int]) -> dict[str, Any]:
    read, written = usage.get("input_tokens", 0), usage.get("output_tokens", 0)
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {"cached_tokens": usage.get("cached_input_tokens", 0)},
        "completion_tokens_details": {"reasoning_tokens": usage.get("reasoning_tokens", 0)},
    }
