"""The completion event: what the recorder needs of a job that ended, from store to ledger."""

from __future__ import annotations

from dataclasses import dataclass

from fabric.contracts.job import JobSpec, Measures


@dataclass(frozen=True, slots=True)
class Completion:
    """One job's end. Times are milliseconds since the epoch on the store's clock.

    ``result`` and ``error`` are JSON bytes; ``result`` is present for batch lines only (other
    results stay in the job record until they expire).
    """

    entry_id: str
    spec: JobSpec
    state: str
    attempt: int
    deployment: str | None
    tier: str | None
    worker: str | None
    accepted_ms: int
    dispatched_ms: int | None
    claimed_ms: int | None
    finished_ms: int
    measures: Measures
    result: bytes | None
    error: bytes | None
