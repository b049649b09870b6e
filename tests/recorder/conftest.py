"""What the recorder's tests share: a ledger of each kind, jobs that have ended, batches with open lines."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from fabric.contracts.errors import EngineError, ErrorInfo
from fabric.contracts.ids import line_job_id
from fabric.contracts.job import JobSpec, JobState, Measures, Usage
from fabric.contracts.job_seals import HomeSeals, WorkerSeals
from fabric.contracts.secret import Secrets
from fabric.contracts.zones import WorkerKeys
from fabric.ledger import Ledger, batches, lines
from fabric.ledger.batches import Batch, NewBatch
from fabric.ledger.lines import EndedLine, NewLine
from fabric.recorder import Recorder
from fabric.store import Store, reads, transitions
from fabric.store.transitions import Dispatch, NewJob, Outcome

EXPIRES_MS = 4_000_000_000_000
SECRETS = Secrets(["s" * 32])
SEALS = WorkerSeals(WorkerKeys.of(SECRETS, ["local"]))
FAILED: ErrorInfo = EngineError("The engine stumbled.").info


@dataclass
class Ended:
    """Ends jobs, and reads what the ledger has of it."""

    store: Store
    ledger: Ledger
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def batch(self, count: int, batch_id: str = "batch_1") -> Batch:
        """A batch in progress with as many open lines."""
        new = NewBatch(batch_id, "default", None, "/v1/chat/completions", "file_1", "24h", None, 1, EXPIRES_MS)
        with self.ledger.writing() as connection:
            batches.create(connection, new)
            lines.add(connection, batch_id, [NewLine(n, f"c{n}", 0, 1, "open") for n in range(1, count + 1)])
            batches.advance(connection, batch_id, "validating", "in_progress", total=count)
        return self.found(batch_id)

    def found(self, batch_id: str = "batch_1") -> Batch:
        batch = self.ledger.read(batches.find, batch_id)
        assert batch is not None
        return batch

    def outcomes(self, batch_id: str = "batch_1") -> list[EndedLine]:
        return self.ledger.read(lines.ended, batch_id, after=0, limit=10_000)

    def job(self, state: JobState = JobState.SUCCEEDED, result: bytes = b'{"choices":[]}', **spec: Any) -> str:
        """A job that was not part of a batch."""
        job_id = f"job_{next(self._numbers):026}"
        return self.end(JobSpec(id=job_id, endpoint="/v1/chat/completions", model="small", **spec), state, result)

    def line(
        self,
        number: int,
        state: JobState = JobState.SUCCEEDED,
        result: bytes = b'{"choices":[]}',
        batch_id: str = "batch_1",
        **spec: Any,
    ) -> str:
        fixed: dict[str, Any] = {
            "id": line_job_id(batch_id, number),
            "endpoint": "/v1/chat/completions",
            "model": "small",
            "priority": "batch",
            "deadline_ms": EXPIRES_MS,
            "batch_id": batch_id,
            "line_no": number,
            "custom_id": f"c{number}",
        }
        return self.end(JobSpec(**(fixed | spec)), state, result)

    def end(self, spec: JobSpec, state: JobState, result: bytes) -> str:
        self.store(transitions.accept([NewJob(spec, b"sealed")]))
        attempt = self.run(spec)
        error = None if state is JobState.SUCCEEDED else FAILED
        measures = Measures(engine_s=0.5, usage=Usage(3, 4), cost_usd=0.01).dump()
        sealed = SEALS.answer(spec, result)
        outcome = Outcome(spec.id, attempt, state, sealed if error is None else b"", error, measures)
        assert self.store(transitions.commit([outcome])) == [1]
        return spec.id

    def run(self, spec: JobSpec) -> int:
        """From queued to running; answers the attempt."""
        self.store(transitions.take([(spec.lane, 1)], lease_ms=60_000))
        (attempt,) = self.store(transitions.dispatch([Dispatch(spec.id, "small-cpu", "cpu", b"{}")]))
        assert self.store(transitions.claim("w1", [(spec.id, attempt)]))
        return attempt

    def stream(self) -> int:
        """Entries that nobody has let go of."""
        return int(self.store.redis.xlen(reads.COMPLETIONS))


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    ledger = Ledger(ledger_url)
    yield ledger
    ledger.close()


@pytest.fixture
def ended(store: Store, ledger: Ledger) -> Ended:
    return Ended(store, ledger)


@pytest.fixture
def recorder(store: Store, ledger: Ledger) -> Recorder:
    return Recorder(store, ledger, HomeSeals(SECRETS), takeover_ms=0)
