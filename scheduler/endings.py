"""How a job ends that has no place left to run. Pure."""

from __future__ import annotations

import orjson

from fabric.contracts.catalog import Catalog
from fabric.contracts.decision import Decision
from fabric.contracts.errors import DeadlineExceeded, ErrorInfo
from fabric.contracts.job import JobState
from fabric.routing import end_of_chain, refusal
from fabric.store.transitions import Rejection, Taken


def ending(job: Taken, decision: Decision, dumped: bytes, catalog: Catalog, now_ms: int) -> Rejection:
    """For an empty plan. What has been tried and can't be helped ends with its last error: parked, unless that is
    the caller's fault. What never got so far fails with the reasons, or expires."""
    last = _last_error(job)
    if last is None:
        error = refusal(job.spec, decision, catalog, now_ms)
        late = error.code == DeadlineExceeded.code
        return Rejection(job.spec.id, JobState.EXPIRED if late else JobState.FAILED, error, dumped)
    state = JobState.FAILED if last.fault in ("caller", "policy") else JobState.DEAD
    return Rejection(job.spec.id, state, end_of_chain(decision, last), dumped)


def _last_error(job: Taken) -> ErrorInfo | None:
    """Of the attempt that used up its tries somewhere, or of one since then."""
    if not job.chain.exhausted:
        return None
    if job.error:
        return ErrorInfo(**orjson.loads(job.error))
    errors = [attempt["error"] for attempt in orjson.loads(b"[" + job.history + b"]") if attempt["error"]]
    return ErrorInfo(**errors[-1]) if errors else None
