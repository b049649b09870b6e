"""The completion event: what the recorder needs of a job that ended, from store to ledger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fabric.contracts.job import JobSpec, Measures


@dataclass(frozen=True, slots=True)
class EarlierAttempt:
    """A try that ended without ending the job. Times are milliseconds since the epoch on the store's clock."""

    number: int
    deployment: str | None
    tier: str | None
    worker: str | None
    outcome: str  #: ``dead``: the job was parked and replayed; anything else: it went on by itself
    dispatched_ms: int | None
    claimed_ms: int | None
    ended_ms: int
    measures: Measures
    error: dict[str, Any] | None
    policy_hash: str | None = None  #: of the rules that it was decided under


@dataclass(frozen=True, slots=True)
class Completion:
    """One job's end. Times are milliseconds since the epoch on the store's clock.

    ``result`` and ``error`` are JSON bytes; ``result`` is present for batch lines only (other
    results stay in the job record until they expire). ``earlier``: the tries before the last one,
    oldest first.
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
    earlier: tuple[EarlierAttempt, ...] = ()
    placeholders: bytes = b""  #: in ``result``: ``fabric.contracts.payload``

    @property
    def late(self) -> bool:
        """Not an end, but what a provider charged for an attempt after it had been given up: ``attempt`` is that
        one's number below zero."""
        return self.attempt < 0

    @property
    def last_try(self) -> EarlierAttempt | None:
        """Of a job that ended while it waited for its next try (cancelled, expired, no place left): the end has no try
        of its own, and ``attempt`` is the number of this one. ``None`` for jobs that ended in a try, or before any."""
        last = self.earlier[-1] if self.earlier else None
        return last if last is not None and last.number == self.attempt else None
