"""What the store's tests share: jobs brought to any state in one line, and what they left behind."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest

from fabric.contracts.completion import Completion
from fabric.contracts.errors import EngineError, ErrorInfo, NoEligibleDeployment
from fabric.contracts.job import JobSpec, JobState
from fabric.contracts.worker import WorkerInfo
from fabric.store import Store, reads, transitions
from fabric.store.transitions import Accepted, Dispatch, Failure, NewJob, Outcome, Rejection

LANE = "interactive|default|small"
#: The time limits that are already over, so that no test has to sleep.
AT_ONCE = -1
FAILED: ErrorInfo = EngineError("The engine stumbled.").info
NOWHERE: ErrorInfo = NoEligibleDeployment("Nowhere to run.").info


@dataclass
class Jobs:
    """Brings jobs to a state, and reads what became of them. Short names for long commands."""

    store: Store
    attempts: dict[str, int] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def spec(self, **fields: Any) -> JobSpec:
        """Ids are counted: of jobs that are due in the same millisecond the first goes first."""
        values = {"id": f"job_{next(self._numbers):026}", "endpoint": "/v1/chat/completions", "model": "small"}
        return JobSpec(**(values | fields))

    def accept(self, *jobs: NewJob, limit: int = 1_000) -> list[Accepted]:
        return self.store(transitions.accept(jobs, limit=limit))

    def queued(self, *, watcher: str = "", payload: bytes = b"sealed", charges: str = "", **fields: Any) -> str:
        spec = self.spec(**fields)
        (answer,) = self.accept(NewJob(spec, payload, watcher=watcher, charges=charges))
        assert answer.verdict == "accepted"
        return spec.id

    def quiet(self, **fields: Any) -> str:
        """A queued batch line."""
        return self.queued(batch_id="batch_1", priority="batch", **fields)

    def take(self, count: int = 1, lane: str = LANE, lease_ms: int = 60_000) -> list[str]:
        return [job.spec.id for job in self.store(transitions.take([(lane, count)], lease_ms=lease_ms))]

    def taken(self, lease_ms: int = 60_000, **fields: Any) -> str:
        job = self.queued(**fields)
        self._take(job, lease_ms)
        return job

    def _take(self, job: str, lease_ms: int = 60_000) -> None:
        others = set(self.take(1_000, self.record(job).lane, lease_ms))
        others.remove(job)
        self.store(transitions.put_back(list(others)))

    def send(
        self, job: str, deployment: str = "small-cpu", claim_within_ms: int = 60_000, *, decision: bytes = b"{}"
    ) -> int:
        """Dispatches a taken job; answers its attempt number."""
        tier = deployment.rpartition("-")[2]
        command = transitions.dispatch([Dispatch(job, deployment, tier, decision)], claim_within_ms=claim_within_ms)
        (self.attempts[job],) = self.store(command)
        return self.attempts[job]

    def dispatched(self, claim_within_ms: int = 60_000, deployment: str = "small-cpu", **fields: Any) -> str:
        job = self.taken(**fields)
        assert self.send(job, deployment, claim_within_ms)
        return job

    def claim(self, job: str, worker: str = "w1", attempt: int | None = None) -> bool:
        number = self.attempts[job] if attempt is None else attempt
        return bool(self.store(transitions.claim(worker, [(job, number)])))

    def running(self, worker: str = "w1", **fields: Any) -> str:
        job = self.dispatched(**fields)
        assert self.claim(job, worker)
        return job

    def run_again(self, job: str, worker: str = "w1") -> None:
        """From queued to running once more."""
        self._take(job)
        assert self.send(job)
        assert self.claim(job, worker)

    def commit(
        self,
        job: str,
        state: JobState = JobState.SUCCEEDED,
        result: bytes = b"{}",
        error: ErrorInfo | None = None,
        *,
        attempt: int | None = None,
        measures: bytes = b"",
    ) -> bool:
        number = self.attempts[job] if attempt is None else attempt
        (counted,) = self.store(transitions.commit([Outcome(job, number, state, result, error, measures)]))
        return bool(counted)

    def fail(self, job: str, delay_ms: int = 0, attempt: int | None = None, **fields: Any) -> str:
        number = self.attempts[job] if attempt is None else attempt
        failure = Failure(**({"job_id": job, "attempt": number, "delay_ms": delay_ms, "error": FAILED} | fields))
        (answer,) = self.store(transitions.fail([failure]))
        return answer

    def leave(self, job: str, **fields: Any) -> str:
        """No further try at this deployment."""
        return self.fail(job, action="leave", **fields)

    def ended(self, state: JobState = JobState.SUCCEEDED, **fields: Any) -> str:
        job = self.running(**fields)
        assert self.commit(job, state, error=None if state is JobState.SUCCEEDED else FAILED)
        return job

    def dead(self, **fields: Any) -> str:
        """Parked by the scheduler: it had nowhere to go."""
        job = self.taken(**fields)
        self.reject(job, JobState.DEAD)
        return job

    def reject(self, job: str, state: JobState = JobState.FAILED) -> int:
        return self.store(transitions.reject([Rejection(job, state, NOWHERE, b'{"plan":[]}')]))

    def rescue(self, at_most: int = 500, deaths: int = 3) -> tuple[int, int]:
        return self.store(transitions.rescue(dead_after_ms=AT_ONCE, deaths=deaths, at_most=at_most))

    def beat(self, worker: str, *held: str, forgotten_ms: int = 10_000) -> dict[str, str]:
        return self.store(transitions.heartbeat(worker_info(worker), held, forgotten_ms=forgotten_ms))

    def state(self, job: str) -> JobState | None:
        return self.store(reads.state(job))

    def record(self, job: str) -> reads.JobRecord:
        record = self.store(reads.job(job))
        assert record is not None
        return record

    def lane(self, lane: str = LANE) -> list[str]:
        return [job.decode() for job in self.store.redis.zrange(f"fabric:lane:{lane}", 0, -1)]

    def members(self, index: str) -> set[str]:
        """The ids in one of the store's sets, sorted or not."""
        kind = self.store.redis.type(f"fabric:{index}")
        read = self.store.redis.smembers if kind == b"set" else lambda key: self.store.redis.zrange(key, 0, -1)
        return {member.decode() for member in read(f"fabric:{index}")}

    def places(self, job: str) -> set[str]:
        """Every index that holds the job."""
        found = set()
        for key in self.store.redis.scan_iter("fabric:*", count=1000):
            name = key.decode().removeprefix("fabric:")
            kind = self.store.redis.type(key)
            if (kind in (b"set", b"zset") and job in self.members(name)) or (
                kind == b"hash" and name.startswith("abort:") and self.store.redis.hexists(key, job)
            ):
                found.add(name)
        return found

    def events(self, job: str) -> list[dict[str, Any]]:
        return [orjson.loads(body) for body in self.store.redis.lrange(f"fabric:events:{job}", 0, -1)]

    def event_types(self, job: str) -> list[str]:
        return [event["type"] for event in self.events(job)]

    def completions(self, job: str | None = None) -> list[Completion]:
        entries = self.store.redis.execute_command("XRANGE", reads.COMPLETIONS, "-", "+")
        every = [reads.completion(entry_id, fields) for entry_id, fields in entries]
        return [c for c in every if job is None or c.spec.id == job]

    def ttl_s(self, key: str) -> float:
        """Seconds that the key has left; -1 when it stays for ever, -2 when there is none."""
        left: int = self.store.redis.pttl(f"fabric:{key}")
        return left / 1000 if left >= 0 else left


def worker_info(worker: str, capacity: int = 4) -> WorkerInfo:
    return WorkerInfo(worker, "cpu", "host", 1, 0, {"small-cpu": 2}, {"small-cpu": capacity}, {})


class Ear:
    """Hears a channel. ``heard`` waits until that many messages are there, and takes them."""

    def __init__(self, store: Store, channel: str) -> None:
        self._pubsub = store.redis.pubsub()
        self._pubsub.subscribe(channel)
        assert self._pubsub.get_message(timeout=5)["type"] == "subscribe"

    def heard(self, count: int) -> list[list[str]]:
        """Messages, each as its lines."""
        messages: list[list[str]] = []
        until = time.monotonic() + 5
        while len(messages) < count:
            assert time.monotonic() < until, f"only {len(messages)} of {count} messages came"
            if message := self._pubsub.get_message(timeout=0.5):
                messages.append(message["data"].decode().split("\n"))
        return messages

    def silent(self) -> bool:
        """Whether nothing was sent: what was published before this call has arrived by now."""
        self._pubsub.ping()
        message = self._pubsub.get_message(timeout=5)
        return message is not None and message["type"] == "pong"

    def close(self) -> None:
        self._pubsub.close()


@pytest.fixture
def jobs(store: Store) -> Jobs:
    return Jobs(store)


@pytest.fixture
def listen(store: Store) -> Iterator[Callable[[str], Ear]]:
    ears: list[Ear] = []

    def _listen(channel: str) -> Ear:
        ears.append(Ear(store, channel))
        return ears[-1]

    yield _listen
    for ear in ears:
        ear.close()
