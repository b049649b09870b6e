"""The scheduler drains dead-letter queues and minds breakers, on a real store."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from fabric.contracts.breaker import Breaker, dump
from fabric.contracts.errors import ContextOverflow, EngineError, ErrorInfo, ProviderError
from fabric.contracts.job import JobState
from fabric.store import Store, reads, transitions
from fabric.store.transitions import Failure, Outcome
from tests.scheduler.test_loop import Scene

if TYPE_CHECKING:
    from fabric.contracts.breaker import End

FOR_GOOD = dump([("*", Breaker(failures=1, open_s=3_600, open_max_s=3_600))])
AT_ONCE = dump([("*", Breaker(failures=1, open_s=0.001))])
FAILED, REFUSED = EngineError("stumbled").info, ContextOverflow("too long").info


@pytest.fixture
def scene(store: Store) -> Scene:
    return Scene(store)


def claim(scene: Scene, job: str) -> int:
    attempt = max(attempt for chunk in scene.sender.sent for job_id, attempt in chunk.jobs if job_id == job)
    assert scene.store(transitions.claim("w", [(job, attempt)]))
    return attempt


def leave(scene: Scene, job: str, error: ErrorInfo = FAILED, **fields: Any) -> None:
    failure = Failure(job, claim(scene, job), 0, error, "leave", **fields)
    assert scene.store(transitions.fail([failure])) == ["moving"]


def end(scene: Scene, job: str, how: End, breakers: bytes) -> None:
    outcome = Outcome(job, claim(scene, job), JobState.SUCCEEDED, end=how)
    assert scene.store(transitions.commit([outcome], breakers=breakers)) == [1]


class TestADeadLetter:
    def test_moves_to_its_next_place(self, scene: Scene) -> None:
        scene.worker(m_cpu=2, m_cloud=2)
        (job,) = scene.accept()
        scene.until_it_rests()
        leave(scene, job)
        assert scene.until_it_rests() == 1
        assert scene.sender.jobs == {job: "m-cloud"}
        decision = scene.record(job).decision
        assert decision is not None
        assert [(out["deployment"], out["reason"]) for out in decision["eliminated"]] == [("m-cpu", "exhausted")]
        assert scene.store(reads.fallbacks()) == {("cpu", "cloud", "engine_error"): 1}

    def test_never_across_its_label(self, scene: Scene) -> None:
        scene.worker(m_cpu=2, m_cloud=2)
        (job,) = scene.accept(privacy="restricted")
        scene.until_it_rests()
        leave(scene, job)
        scene.until_it_rests()
        assert scene.sender.jobs == {job: "m-cpu"}
        record = scene.record(job)
        assert record.state is JobState.DEAD
        assert record.error is not None
        assert (record.error["code"], record.error["status"]) == ("engine_error", 502)
        assert "m-cloud: privacy" in record.error["message"]

    def test_is_parked_at_the_end_of_its_chain(self, scene: Scene) -> None:
        scene.worker(m_cpu=2, m_cloud=2)
        (job,) = scene.accept()
        scene.until_it_rests()
        leave(scene, job)
        scene.until_it_rests()
        leave(scene, job, ProviderError("The API failed.").info)
        assert scene.until_it_rests() == 1
        record = scene.record(job)
        assert record.state is JobState.DEAD
        assert record.error is not None
        assert record.error["code"] == "provider_error"
        assert [(a.deployment, a.outcome) for a in record.attempts] == [("m-cpu", "exhausted"), ("m-cloud", "dead")]

    def test_of_the_callers_making_fails_and_is_not_parked(self, scene: Scene) -> None:
        scene.worker(m_cpu=2, m_cloud=2)
        (job,) = scene.accept()
        scene.until_it_rests()
        leave(scene, job, REFUSED)
        scene.until_it_rests()  # the windows of both places are alike
        record = scene.record(job)
        assert record.state is JobState.FAILED
        assert record.error is not None
        assert (record.error["status"], record.error["fault"]) == (400, "caller")

    def test_waits_in_its_lane_when_the_next_place_has_no_room(self, scene: Scene) -> None:
        scene.worker("w1", m_cpu=2)
        (job,) = scene.accept()
        scene.until_it_rests()
        leave(scene, job)
        scene.until_it_rests()
        assert scene.state(job) is JobState.QUEUED
        assert scene.store(transitions.room()).dead == {}
        scene.worker("w2", m_cloud=1)
        assert scene.until_it_rests() == 1
        assert scene.sender.jobs == {job: "m-cloud"}

    def test_pays_from_what_is_left_of_its_cap(self, scene: Scene) -> None:
        scene.worker(m_cpu=2, m_cloud=2)
        catalog = scene.loop._catalog.model_dump()
        catalog["models"][0]["deployments"][1]["price"] = {"input_per_million": 0.0, "output_per_million": 100.0}
        scene.loop = scene.scheduler(type(scene.loop._catalog).model_validate(catalog))
        dear, cheap = scene.accept(2, max_cost_usd=0.02, max_output_tokens=100)
        scene.until_it_rests()
        leave(scene, dear, cost_usd=0.015)
        leave(scene, cheap, cost_usd=0.005)
        scene.until_it_rests()
        assert scene.state(dear) is JobState.DEAD
        assert scene.sender.jobs[cheap] == "m-cloud"


class TestABreaker:
    def opened(self, scene: Scene, breakers: bytes, model: str = "n") -> None:
        (job,) = scene.accept(model=model)
        scene.until_it_rests()
        end(scene, job, "bad", breakers)

    def test_that_is_open_makes_jobs_without_another_place_wait(self, scene: Scene) -> None:
        scene.worker(n_cpu=2)
        self.opened(scene, FOR_GOOD)
        jobs = scene.accept(3, model="n")
        assert scene.until_it_rests() == 0
        assert {scene.state(job) for job in jobs} == {JobState.QUEUED}
        scene.store.redis.delete("fabric:health")
        assert scene.until_it_rests() == 3

    def test_sends_the_others_on(self, scene: Scene) -> None:
        scene.worker(m_cpu=2, m_cloud=2)
        self.opened(scene, FOR_GOOD, "m")
        public, restricted = scene.accept(privacy="public") + scene.accept(privacy="restricted")
        scene.until_it_rests()
        assert scene.sender.jobs[public] == "m-cloud"
        assert restricted not in scene.sender.jobs
        assert scene.state(restricted) is JobState.QUEUED
        decision = scene.record(public).decision
        assert decision is not None
        assert [out["reason"] for out in decision["eliminated"]] == ["health"]

    def test_a_waiting_job_ends_at_its_deadline(self, scene: Scene) -> None:
        scene.worker(n_cpu=2)
        self.opened(scene, FOR_GOOD)
        (job,) = scene.accept(model="n", deadline_ms=int(time.time() * 1000) + 50)
        scene.until_it_rests()
        while not scene.store(transitions.expire()):
            pass
        assert scene.state(job) is JobState.EXPIRED

    @pytest.mark.parametrize("fields", [{}, {"priority": "batch", "batch_id": "b"}])
    def test_that_is_half_open_lets_one_job_try(self, scene: Scene, fields: dict[str, Any]) -> None:
        scene.worker(n_cpu=64)
        self.opened(scene, AT_ONCE)
        jobs = scene.accept(5, model="n", **fields)
        while not scene.until_it_rests():
            pass
        (probe,) = [job for job in jobs if job in scene.sender.jobs]
        assert scene.until_it_rests() == 0
        end(scene, probe, "good", AT_ONCE)
        scene.until_it_rests()
        assert set(jobs) <= set(scene.sender.jobs)
