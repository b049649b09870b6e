"""A worker without its Celery half: what comes in by ``receive`` runs, and the lease keeps it."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from fabric.contracts.catalog import Deployment
from fabric.contracts.errors import Unavailable
from fabric.contracts.job import JobSpec, JobState
from fabric.contracts.job_seals import HomeSeals, ReadingZones
from fabric.contracts.secret import Secrets
from fabric.contracts.worker import WorkerInfo
from fabric.contracts.zones import WorkerKeys
from fabric.store import Store, bad_messages, reads, transitions
from fabric.store.transitions import Dispatch, NewJob
from workers import runtime as runtime_module
from workers.engines.mock import MockEngine
from workers.runtime import Runtime

if TYPE_CHECKING:
    from tests.conftest import Valkey

FOREVER_MS = 600_000


SECRETS = Secrets.passing()
HOME = HomeSeals(SECRETS)


class Scene:
    def __init__(self, valkey: Valkey, store: Store) -> None:
        self.valkey = valkey
        self.store = store
        self._numbers: Iterator[int] = itertools.count()
        self.runtimes: list[Runtime] = []

    def worker(self, *, slots: int = 4, **options: Any) -> Runtime:
        deployment = Deployment(name="d", engine="mock", tier="cpu", slots=slots, options=options)
        runtime = Runtime(self.valkey.url, "cpu", [deployment], WorkerKeys.of(SECRETS, ["local"]))
        runtime.start()
        self.runtimes.append(runtime)
        return runtime

    def dispatched(self, count: int = 1, **fields: Any) -> list[tuple[str, int]]:
        """As the scheduler does it: jobs with a message's worth of numbers."""
        values = {"endpoint": "/v1/chat/completions", "model": "m", "priority": "standard"} | fields
        specs = [JobSpec(id=f"job_{next(self._numbers):026}", **values) for _ in range(count)]
        payload = orjson.dumps({"endpoint": values["endpoint"], "body": {"messages": []}, "stream": False})
        sealed = [HOME.payload(spec, payload, ReadingZones(frozenset({"local"}), frozenset())) for spec in specs]
        self.store(transitions.accept(map(NewJob, specs, sealed)))
        self.store(transitions.take([(specs[0].lane, count)]))
        attempts = self.store(transitions.dispatch([Dispatch(s.id, "d", "cpu", b"{}") for s in specs]))
        return list(zip((s.id for s in specs), attempts, strict=True))

    def state(self, job: str) -> JobState | None:
        return self.store(reads.state(job))

    def ended(self, job: str) -> JobState:
        self.until(lambda: (state := self.state(job)) is not None and state.ended)
        state = self.state(job)
        assert state is not None
        return state

    def info(self) -> WorkerInfo | None:
        return next(iter(self.store(transitions.room()).workers), None)

    def until(self, condition: Callable[[], object]) -> None:
        pause, until = threading.Event(), time.monotonic() + 30
        while not condition():
            assert time.monotonic() < until, "it never came true"
            pause.wait(0.01)


@pytest.fixture
def scene(valkey: Valkey, store: Store) -> Iterator[Scene]:
    scene = Scene(valkey, store)
    yield scene
    for runtime in scene.runtimes:
        runtime.stop(0)


class TestReceiving:
    def test_a_chunk_is_claimed_and_runs(self, scene: Scene) -> None:
        worker = scene.worker()
        jobs = scene.dispatched(3)
        assert worker.receive("d", [list(job) for job in jobs]) == 3
        assert [scene.ended(job) for job, _ in jobs] == [JobState.SUCCEEDED] * 3
        record = scene.store(reads.job(jobs[0][0]))
        assert record is not None
        assert record.result is not None
        assert record.attempts[0].worker == worker.id

    def test_the_same_message_again_claims_nothing_new(self, scene: Scene) -> None:
        worker = scene.worker()
        jobs = scene.dispatched()
        worker.receive("d", jobs)
        assert scene.ended(jobs[0][0]) is JobState.SUCCEEDED
        assert worker.receive("d", jobs) == 0

    def test_a_deployment_that_it_does_not_have_goes_back(self, scene: Scene) -> None:
        worker = scene.worker()
        jobs = scene.dispatched()
        assert worker.receive("other", jobs) == 0
        assert scene.state(jobs[0][0]) is JobState.QUEUED

    def test_a_message_that_names_no_job_there_is_is_kept(self, scene: Scene) -> None:
        worker = scene.worker()
        assert worker.receive("d", [("job_nobody", 7)]) == 0
        scene.until(lambda: scene.store(bad_messages.count()) == 1)
        (kept,) = scene.store(bad_messages.kept())
        assert (kept.reason, kept.queue) == ("unknown job", "fabric.cpu.d")
        assert orjson.loads(kept.body)["jobs"] == [["job_nobody", 7]]

    def test_one_that_is_only_stale_is_not(self, scene: Scene) -> None:
        worker = scene.worker()
        jobs = scene.dispatched()
        worker.receive("d", jobs)
        scene.ended(jobs[0][0])
        assert worker.receive("d", jobs) == 0
        assert scene.store(bad_messages.count()) == 0

    def test_a_full_worker_waits_for_room(self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(runtime_module, "_ROOM_S", 30)
        worker = scene.worker(slots=1, latency_ms=FOREVER_MS)
        first = scene.dispatched(3)
        worker.receive("d", first)
        late = scene.dispatched()
        received: list[int] = []
        waiting = threading.Thread(target=lambda: received.append(worker.receive("d", late)))
        waiting.start()
        scene.store(transitions.cancel([first[0][0]]))
        waiting.join(timeout=30)
        assert received == [1]

    def test_but_not_for_ever(self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(runtime_module, "_ROOM_S", 0.01)
        worker = scene.worker(slots=1, latency_ms=FOREVER_MS)
        worker.receive("d", scene.dispatched(3))
        late = scene.dispatched()
        assert worker.receive("d", late) == 0
        record = scene.store(reads.job(late[0][0]))
        assert record is not None
        assert record.state is JobState.QUEUED
        assert record.attempts[0].error is not None
        assert record.attempts[0].error["code"] == "declined"


class TestHeartbeat:
    def test_it_says_what_it_has_and_holds(self, scene: Scene) -> None:
        worker = scene.worker(slots=2, latency_ms=FOREVER_MS)
        worker.receive("d", scene.dispatched(3))
        scene.until(lambda: (info := scene.info()) and info.running == {"d": 3})
        info = scene.info()
        assert info is not None
        assert (info.id, info.tier, info.pid) == (worker.id, "cpu", os.getpid())
        assert (info.slots, info.capacity, info.draining) == ({"d": 2}, {"d": 4}, False)

    def test_it_says_how_its_engines_are(self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(MockEngine, "context", 512)
        scene.worker(slots=2)
        scene.until(scene.info)
        info = scene.info()
        assert info is not None
        assert (info.context, info.states) == ({"d": 512}, {"d": "loaded"})
        monkeypatch.setattr(MockEngine, "slots", 0)
        scene.until(lambda: (info := scene.info()) and info.states == {"d": "away"} and info.capacity == {"d": 0})
        monkeypatch.undo()
        scene.until(lambda: (info := scene.info()) and info.states == {"d": "loaded"} and info.capacity == {"d": 4})

    def test_slots_that_an_engine_finds_later_are_used(self, scene: Scene) -> None:
        worker = scene.worker(slots=1, latency_ms=FOREVER_MS)
        engine = worker._engines["d"]
        engine.deployment = engine.deployment.model_copy(update={"slots": 3})
        scene.until(lambda: (info := scene.info()) and info.capacity == {"d": 6})

    def test_a_cancelled_job_is_stopped_in_its_engine(self, scene: Scene) -> None:
        worker = scene.worker(latency_ms=FOREVER_MS)
        ((job, attempt),) = scene.dispatched()
        worker.receive("d", [(job, attempt)])
        scene.until(lambda: worker._runner.held)
        assert scene.store(transitions.cancel([job])) == ["stopping"]
        assert scene.ended(job) is JobState.CANCELLED

    def test_also_when_the_word_itself_was_lost(self, scene: Scene) -> None:
        worker = scene.worker(latency_ms=FOREVER_MS)
        ((job, attempt),) = scene.dispatched()
        worker.receive("d", [(job, attempt)])
        scene.until(lambda: worker._runner.held)
        # What ``cancel`` leaves behind, without its message.
        scene.store.redis.hset(f"fabric:job:{job}", mapping={"cancel": "cancelled", "cancel_error": "{}"})
        scene.store.redis.hset(f"fabric:abort:{worker.id}", job, "cancelled")
        assert scene.ended(job) is JobState.CANCELLED

    def test_a_job_that_was_given_to_another_is_let_go(self, scene: Scene) -> None:
        worker = scene.worker(latency_ms=FOREVER_MS)
        ((job, attempt),) = scene.dispatched()
        worker.receive("d", [(job, attempt)])
        scene.until(lambda: worker._runner.held)
        scene.store(transitions.rescue(dead_after_ms=-1))
        scene.until(lambda: not worker._runner.held)
        assert scene.state(job) is JobState.QUEUED


class TestStopping:
    def test_it_finishes_what_runs(self, scene: Scene) -> None:
        worker = scene.worker(latency_ms=300)
        jobs = scene.dispatched(2)
        worker.receive("d", jobs)
        worker.stop(30)
        scene.runtimes.clear()
        assert [scene.state(job) for job, _ in jobs] == [JobState.SUCCEEDED] * 2
        assert scene.store.redis.keys("fabric:*worker*") == []

    def test_and_hands_back_what_takes_too_long(self, scene: Scene) -> None:
        worker = scene.worker(latency_ms=FOREVER_MS)
        ((job, attempt),) = scene.dispatched()
        worker.receive("d", [(job, attempt)])
        worker.stop(0.05)
        scene.runtimes.clear()
        record = scene.store(reads.job(job))
        assert record is not None
        assert record.state is JobState.QUEUED
        assert record.attempts[0].error is not None
        assert record.attempts[0].error["code"] == "handed_back"

    def test_draining_is_said_at_once_and_takes_nothing_more(self, scene: Scene) -> None:
        worker = scene.worker(latency_ms=FOREVER_MS)
        scene.until(scene.info)
        worker.drain()
        scene.until(lambda: (info := scene.info()) and info.draining)
        jobs = scene.dispatched()
        assert worker.receive("d", jobs) == 0
        assert scene.state(jobs[0][0]) is JobState.QUEUED

    def test_a_message_that_waits_for_room_is_let_go(self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(runtime_module, "_ROOM_S", 600)
        worker = scene.worker(slots=1, latency_ms=FOREVER_MS)
        worker.receive("d", scene.dispatched(3))
        late = scene.dispatched()
        waiting = threading.Thread(target=worker.receive, args=("d", late))
        waiting.start()
        worker.drain()
        waiting.join(timeout=30)
        assert scene.state(late[0][0]) is JobState.QUEUED


class TestAStoreThatIsAway:
    def test_a_claim_waits_for_it(self, scene: Scene) -> None:
        worker = scene.worker()
        jobs = scene.dispatched()
        scene.valkey.kill()
        received: list[int] = []
        waiting = threading.Thread(target=lambda: received.append(worker.receive("d", jobs)))
        waiting.start()
        scene.valkey.start()
        waiting.join(timeout=30)
        assert received == [1]
        assert scene.ended(jobs[0][0]) is JobState.SUCCEEDED

    def test_an_answer_waits_for_it(self, scene: Scene) -> None:
        worker = scene.worker(latency_ms=100)
        jobs = scene.dispatched()
        worker.receive("d", jobs)
        scene.valkey.kill()
        scene.until(lambda: worker._outbox.pending)
        scene.valkey.start()
        assert scene.ended(jobs[0][0]) is JobState.SUCCEEDED

    def test_a_worker_that_stops_meanwhile_leaves_the_message_to_others(self, scene: Scene) -> None:
        worker = scene.worker()
        jobs = scene.dispatched()
        scene.valkey.kill()
        worker.drain()
        # The draining worker declines, and can't.
        with pytest.raises(Unavailable):
            worker.receive("d", jobs)
        scene.valkey.start()


class TestWhatItCannotGoOnWithout:
    def test_a_duty_that_fails_ends_the_worker(self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        """A worker that beats and never commits would hold its jobs for ever."""
        statuses: list[int] = []
        ended = threading.Event()

        def leave(status: int) -> None:
            statuses.append(status)
            ended.set()

        monkeypatch.setattr(runtime_module.os, "_exit", leave)
        monkeypatch.setattr(runtime_module.logging, "shutdown", lambda: None)
        worker = scene.worker()
        worker._loop.call_soon_threadsafe(worker._outbox.outcome, "no outcome at all")
        assert ended.wait(30)
        assert statuses == [70]


def test_bad_messages_are_kept(scene: Scene) -> None:
    scene.worker().set_aside("unreadable body", b"\xff", "fabric.cpu.d")
    scene.until(lambda: scene.store(bad_messages.count()) == 1)
    (kept,) = scene.store(bad_messages.kept())
    assert (kept.reason, kept.body) == ("unreadable body", b"\xff")
