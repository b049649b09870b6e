"""The job as the API shows it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import orjson

from fabric.contracts.answer import whole
from fabric.contracts.job import Attempt, JobState
from fabric.gateway.queueing import Place
from fabric.ledger.usage import Used
from fabric.store.bad_messages import BadMessage
from fabric.store.reads import JobRecord


def job_object(record: JobRecord, place: Place | None = None) -> dict[str, Any]:
    """``*_ms``: milliseconds since the epoch on the store's clock. ``result`` is the answer's body."""
    spec = record.spec
    ended = record.state.ended
    created = record.accepted_ms // 1000
    result = None
    if record.state is JobState.SUCCEEDED and record.result:
        result = orjson.Fragment(whole(spec.endpoint, spec.id, spec.model, created, record.result))
    return {
        "id": spec.id,
        "object": "job",
        "state": record.state.value,
        "endpoint": spec.endpoint,
        "model": spec.model,
        "privacy": spec.privacy,
        "raised_from": spec.raised_from,
        "entities": spec.entities,
        "redacted": spec.redacted,
        "priority": spec.priority,
        "policy": spec.policy,
        "tags": spec.tags,
        "stream": spec.stream,
        "batch_id": spec.batch_id,
        "created_at": created,
        "accepted_ms": record.accepted_ms,
        "deadline_ms": spec.deadline_ms,
        "finished_ms": record.finished_ms,
        "queue_position": place.position if place else None,
        "eta_s": place.eta_s if place else None,
        "attempts": record.attempts,
        "moves": moves(record.attempts),
        "decision": record.decision,
        "usage": record.measures.usage if ended else None,
        "cost_usd": _cost_usd(record) if ended else None,
        "result": result,
        "error": record.error,
    }


def moves(attempts: Sequence[Attempt]) -> list[dict[str, Any]]:
    """Where the job went from one deployment to another. ``reason``: the code of the error before it, if any."""
    return [
        {
            "from": before.deployment,
            "to": after.deployment,
            "reason": (before.error or {}).get("code"),
            "attempt": after.number,
            "at_ms": after.dispatched_ms,
        }
        for before, after in pairwise(attempts)
        if before.deployment != after.deployment
    ]


def _cost_usd(record: JobRecord) -> float:
    """Of all its attempts."""
    return float(sum((attempt.measures or {}).get("cost_usd", 0.0) for attempt in record.attempts))


def archived_job_object(rows: Sequence[Used]) -> dict[str, Any]:
    """A job whose record has expired: what the ledger keeps of it, for good. ``rows``: oldest attempt first."""
    last = rows[-1]
    error = None
    if last.error_code is not None:
        error = {"message": "The job's record has expired; only the code is kept.", "code": last.error_code}
    return {
        "id": last.job_id,
        "object": "job",
        "state": last.state,
        "endpoint": last.endpoint,
        "model": last.model,
        "privacy": last.privacy,
        "priority": last.priority,
        "policy": last.policy,
        "tags": last.tags,
        "stream": None,
        "batch_id": last.batch_id,
        "created_at": last.accepted_ms // 1000,
        "accepted_ms": last.accepted_ms,
        "deadline_ms": None,
        "finished_ms": last.finished_ms,
        "queue_position": None,
        "eta_s": None,
        "attempts": [_attempt(row) for row in rows if row.attempt],
        "moves": [],
        "decision": None,
        "usage": {
            "input_tokens": last.input_tokens,
            "output_tokens": last.output_tokens,
            "cached_input_tokens": last.cached_input_tokens,
            "reasoning_tokens": last.reasoning_tokens,
            "estimated": bool(last.estimated),
        },
        "cost_usd": sum(row.cost_usd for row in rows),
        "result": None,
        "error": error,
    }


def _attempt(row: Used) -> dict[str, Any]:
    return {
        "number": row.attempt,
        "deployment": row.deployment,
        "tier": row.tier,
        "worker": row.worker,
        "outcome": row.state,
        "dispatched_ms": row.dispatched_ms,
        "claimed_ms": row.claimed_ms,
        "ended_ms": row.finished_ms,
        "error": {"code": row.error_code} if row.error_code else None,
    }


def parked_object(record: JobRecord) -> dict[str, Any]:
    """A parked job as a dead letter: why it is here, and what was tried. Oldest reason first."""
    errors = [attempt.error for attempt in record.attempts if attempt.error]
    if record.error and (not errors or errors[-1] != record.error):
        errors.append(record.error)
    reasons = [{name: error.get(name) for name in ("code", "message", "fault")} for error in errors]
    out = record.decision["eliminated"] if record.decision and not record.decision["plan"] else ()
    reasons += [{"code": e["reason"], "message": f"{e['deployment']}: {e['detail']}", "fault": "policy"} for e in out]
    return {
        "object": "dead_letter",
        "job_id": record.spec.id,
        "queue": parked_queue(record),
        "reasons": reasons,
        "attempts": [asdict(attempt) for attempt in record.attempts],
        "parked_at": (record.finished_ms or record.accepted_ms) // 1000,
        "parked_ms": record.finished_ms,
        "model": record.spec.model,
        "endpoint": record.spec.endpoint,
        "privacy": record.spec.privacy,
        "decision": record.decision,
    }


#: In place of a queue: messages that nobody can read.
MESSAGES = "messages"


def message_object(message: BadMessage) -> dict[str, Any]:
    """A message that nobody can read, as a dead letter. ``body``: its first bytes, in base64."""
    return {
        "object": "dead_message",
        "job_id": None,
        "queue": message.queue or None,
        "reasons": [{"code": "unreadable_message", "message": message.reason, "fault": "fabric"}],
        "attempts": [],
        "parked_at": message.at_ms // 1000,
        "parked_ms": message.at_ms,
        "body": base64.b64encode(message.body).decode(),
    }


def parked_queue(record: JobRecord) -> str | None:
    """The broker queue that its last attempt came from; ``None`` when it never had one."""
    last = record.attempts[-1] if record.attempts else None
    return f"fabric.{last.tier}.{last.deployment}" if last else None
