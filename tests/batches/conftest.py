"""What the batches' tests share: a ledger, a files directory, batches made in one line, and a worker.

The worker stands for scheduler, broker and workers: it takes, dispatches, claims and commits through the
store's own transitions, and answers at once.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import orjson
import pytest

from fabric.batches import wake
from fabric.batches.service import BatchService
from fabric.batches.storage import Storage
from fabric.contracts.catalog import Catalog, Deployment, Model
from fabric.contracts.errors import EngineRejected, Unavailable
from fabric.contracts.ids import new_id
from fabric.contracts.job import JobState, Measures, Usage
from fabric.contracts.job_seals import HomeSeals, WorkerSeals
from fabric.contracts.sealed import Seals
from fabric.contracts.secret import Secrets
from fabric.contracts.zones import WorkerKeys
from fabric.ledger import Ledger, batches, files
from fabric.ledger.batches import Batch, NewBatch
from fabric.ledger.files import File
from fabric.recorder import Recorder
from fabric.store import Command, Store, transitions
from fabric.store.transitions import Claimed, Dispatch, Outcome

if TYPE_CHECKING:
    from tests.conftest import Valkey

T = TypeVar("T")

CHAT = "/v1/chat/completions"
DAY_MS = 86_400_000
CATALOG = Catalog(
    models=(
        Model(name="small", deployments=(Deployment(name="small-cpu", engine="mock", tier="cpu"),)),
        Model(
            name="vectors",
            deployments=(Deployment(name="vectors-cpu", engine="mock", tier="cpu", capabilities=("embeddings",)),),
        ),
    )
)
WAIT_S = 120.0
SECRETS = Secrets(["s" * 32])
SEALS, HOME = Seals(SECRETS), HomeSeals(SECRETS)
WORKER_SEALS = WorkerSeals(WorkerKeys.of(SECRETS, ["local", "cloud"]))


def request(custom_id: str, text: str = "Hello", **body: Any) -> dict[str, Any]:
    """One line of an input file."""
    messages = [{"role": "user", "content": text}]
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": CHAT,
        "body": {"model": "small", "messages": messages, **body},
    }


@dataclass
class Desk:
    """Everything of one fabric that batches need, and short names for it."""

    ledger: Ledger
    storage: Storage
    url: str
    database_url: str
    store: Store
    catalog: Catalog = CATALOG
    home: HomeSeals = HOME

    def upload(self, lines: Iterable[bytes | dict[str, Any]], *, counted: bool = True) -> str:
        """Stores an input file; answers its id."""
        file_id = new_id("file")
        number = size = 0
        with self.storage.writing(file_id) as file:
            for line in lines:
                raw = line if isinstance(line, bytes) else orjson.dumps(line)
                number += not raw.isspace() and raw != b""
                size += file.write(raw + b"\n")
        row = File(file_id, "default", "batch", "in.jsonl", size, number if counted else None, file_id, _now_ms())
        self.ledger.write(files.create, row)
        return file_id

    def batch(
        self,
        lines: Iterable[bytes | dict[str, Any]],
        *,
        endpoint: str = CHAT,
        tenant: str = "default",
        window_ms: int = DAY_MS,
        counted: bool = True,
    ) -> str:
        """Creates a batch as the gateway does; answers its id."""
        now = _now_ms()
        new = NewBatch(
            id=new_id("batch"),
            tenant=tenant,
            key_id=None,
            endpoint=endpoint,
            input_file_id=self.upload(lines, counted=counted),
            completion_window="24h",
            metadata=None,
            created_ms=now,
            expires_ms=now + window_ms,
        )
        self.ledger.write(batches.create, new)
        self.wake()
        return new.id

    def cancel(self, batch_id: str) -> None:
        self.ledger.write(batches.cancel, "default", batch_id, _now_ms())
        self.wake()

    def wake(self) -> None:
        self.store(wake.wake())

    def found(self, batch_id: str) -> Batch:
        batch = self.ledger.read(batches.find, batch_id)
        assert batch is not None
        return batch

    def wait(self, batch_id: str, *statuses: str, timeout_s: float = WAIT_S) -> Batch:
        """Waits until the batch has one of these statuses; any end if none is named."""
        ends = statuses or ("completed", "failed", "expired", "cancelled")
        return self.until(lambda: self._at(batch_id, ends), timeout_s)

    def _at(self, batch_id: str, statuses: Sequence[str]) -> Batch | None:
        batch = self.ledger.read(batches.find, batch_id)
        return batch if batch is not None and batch.status in statuses else None

    def until(self, look: Callable[[], Any], timeout_s: float = WAIT_S) -> Any:
        """Waits until ``look`` answers something; an unreachable ledger or store is waited for too."""
        end = time.monotonic() + timeout_s
        while True:
            try:
                if found := look():
                    return found
            except Unavailable:
                pass
            assert time.monotonic() < end, "it took too long"
            time.sleep(0.02)

    def drive(self, look: Callable[[], Any], *steps: Callable[[], object]) -> Any:
        """Does the steps again and again until ``look`` answers something."""

        def turn() -> Any:
            for step in steps:
                step()
            return look()

        return self.until(turn)

    def request(self, job: Claimed) -> dict[str, Any]:
        """As its worker opens it."""
        opened: dict[str, Any] = orjson.loads(WORKER_SEALS.request(job.spec, job.payload))
        return opened

    def succeed(self, job: Claimed, result: bytes) -> Outcome:
        return Outcome(job.spec.id, job.attempt, JobState.SUCCEEDED, WORKER_SEALS.answer(job.spec, result))

    def output(self, batch_id: str) -> list[dict[str, Any]]:
        return self.lines(self.found(batch_id).output_file_id)

    def errors(self, batch_id: str) -> list[dict[str, Any]]:
        return self.lines(self.found(batch_id).error_file_id)

    def content(self, file_id: str) -> bytes:
        with self.storage.open(file_id) as file:
            return file.read()

    def lines(self, file_id: str | None) -> list[dict[str, Any]]:
        if file_id is None:
            return []
        return [orjson.loads(line) for line in self.content(file_id).splitlines()]

    def service(self, store: Store | None = None, **options: Any) -> BatchService:
        fixed: dict[str, Any] = {"homecoming_ms": 3_000, "still_s": 1.0, "term_ms": 1_000, "look_s": 0.2}
        return BatchService(store or self.store, self.ledger, self.storage, HOME, self.catalog, **(fixed | options))

    def recorder(self, store: Store | None = None, **options: Any) -> Recorder:
        used = store or self.store
        fixed: dict[str, Any] = {"recorded": lambda: used(wake.wake()), "takeover_ms": 500, "block_ms": 200}
        return Recorder(used, self.ledger, HOME, **(fixed | options))

    @contextmanager
    def serving(self, **options: Any) -> Iterator[None]:
        """A recorder and a batch service on threads of their own, as the ``recorder`` process runs them."""
        stop = threading.Event()
        recording, feeding = Store(self.url), Store(self.url)
        failures: list[BaseException] = []

        def run(work: Callable[[threading.Event], None]) -> None:
            try:
                work(stop)
            except BaseException as error:
                failures.append(error)
                raise

        works = (self.recorder(recording).run, self.service(feeding, **options).run)
        threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join(30)
            recording.close()
            feeding.close()
        assert not failures
        assert not any(thread.is_alive() for thread in threads)


Answer = Callable[[Claimed], Outcome]


def reply(job: Claimed) -> Outcome:
    """What a small engine answers; a message that says ``fail`` is refused."""
    body = orjson.loads(WORKER_SEALS.request(job.spec, job.payload))["body"]
    text = body["messages"][-1]["content"] if "messages" in body else ""
    if text == "fail":
        error = EngineRejected("The engine doesn't like it.").info
        return Outcome(job.spec.id, job.attempt, JobState.FAILED, error=error, measures=Measures(engine_s=0.1).dump())
    choice = {"index": 0, "message": {"role": "assistant", "content": f"You said: {text}"}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    result = orjson.dumps({"object": "chat.completion", "choices": [choice], "usage": usage})
    measures = Measures(engine_s=0.25, usage=Usage(3, 5), cost_usd=0.001).dump()
    return Outcome(
        job.spec.id, job.attempt, JobState.SUCCEEDED, WORKER_SEALS.answer(job.spec, result), measures=measures
    )


@dataclass
class Worker:
    """Runs every job that it finds. ``hold`` stops it before the next chunk; ``runs`` counts what it committed."""

    url: str
    answer: Answer = reply
    chunk: int = 64
    runs: Counter[str] = field(default_factory=Counter)
    go: threading.Event = field(default_factory=threading.Event)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self.go.set()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self.go.set()
        if self._thread:
            self._thread.join(30)
            assert not self._thread.is_alive()

    def _run(self) -> None:
        store = Store(self.url)
        while not self._stop.is_set():
            self.go.wait()
            try:
                moved = self._once(store)
            except Unavailable:
                moved = 0
            if not moved:
                self._stop.wait(0.02)
        store.close()

    def _once(self, store: Store) -> int:
        store(transitions.promote())
        # Everything that was taken or dispatched before a crash lines up again.
        store(transitions.reclaim())
        lanes = [(lane.name, self.chunk) for lane in store(transitions.room()).lanes]
        taken = store(transitions.take(lanes, lease_ms=500)) if lanes else []
        if not taken:
            return 0
        dispatches = [Dispatch(job.spec.id, f"{job.spec.model}-cpu", "cpu", b"{}") for job in taken]
        attempts = store(transitions.dispatch(dispatches, claim_within_ms=500))
        sent = [(job.spec.id, attempt) for job, attempt in zip(taken, attempts, strict=True) if attempt > 0]
        # Without an answer nobody knows whether these jobs are ours: asked again, the store says it again.
        claimed = self._insist(store, transitions.claim("w1", sent))
        outcomes = [self.answer(job) for job in claimed]
        for outcome, counted in zip(outcomes, self._insist(store, transitions.commit(outcomes)), strict=True):
            self.runs[outcome.job_id] += counted
        return len(claimed)

    def _insist(self, store: Store, command: Command[list[T]]) -> list[T]:
        while True:
            try:
                return store(command)
            except Unavailable:
                if self._stop.wait(0.05):
                    raise


def _now_ms() -> int:
    return int(time.time() * 1000)


@pytest.fixture
def make_desk(valkey: Valkey, tmp_path: Path, store: Store) -> Iterator[Callable[[str], Desk]]:
    ledgers: list[Ledger] = []

    def make(database_url: str) -> Desk:
        ledgers.append(Ledger(database_url))
        return Desk(ledgers[-1], Storage(tmp_path / "files", SEALS), valkey.url, database_url, store)

    yield make
    for ledger in ledgers:
        ledger.close()


@pytest.fixture
def desk(make_desk: Callable[[str], Desk], sqlite_ledger: str) -> Desk:
    """On SQLite."""
    return make_desk(sqlite_ledger)


@pytest.fixture
def each_desk(make_desk: Callable[[str], Desk], ledger_url: str) -> Desk:
    """On each kind of database."""
    return make_desk(ledger_url)


@pytest.fixture
def worker(valkey: Valkey) -> Iterator[Worker]:
    """Started by the test."""
    worker = Worker(valkey.url)
    yield worker
    worker.stop()


@pytest.fixture
def line() -> Any:
    """One line of an input file: ``line(custom_id, text, **body)``."""
    return request
