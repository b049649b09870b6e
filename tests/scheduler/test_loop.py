"""Rounds of the scheduler on a real store. What it sends goes to a sender that remembers."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import orjson
import pytest

from fabric.contracts.catalog import Catalog, Deployment
from fabric.contracts.decision import Decision
from fabric.contracts.errors import Unavailable
from fabric.contracts.job import JobSpec, JobState
from fabric.contracts.message import Chunk
from fabric.contracts.worker import WorkerInfo
from fabric.routing import DeploymentState, decide, policy_hash, policy_text
from fabric.store import Command, Store, budgets, policies, reads, transitions
from fabric.store.budgets import Opening
from fabric.store.transitions import NewJob
from scheduler.loop import Loop, chunks

CATALOG = Catalog.model_validate(
    {
        "models": [
            {
                "name": "m",
                "deployments": [
                    {"name": "m-cpu", "engine": "mock", "tier": "cpu"},
                    {"name": "m-cloud", "engine": "mock", "tier": "cloud"},
                ],
            },
            {"name": "n", "deployments": [{"name": "n-cpu", "engine": "mock", "tier": "cpu"}]},
        ]
    }
)


CHAT = "/v1/chat/completions"


class Remembers:
    """In place of ``Sender``."""

    def __init__(self) -> None:
        self.sent: list[Chunk] = []
        self.away: set[str] = set()  #: ``connect`` or ``send``

    def connect(self) -> None:
        if "connect" in self.away:
            raise Unavailable("away")

    def send(self, messages: Iterable[tuple[Deployment, Chunk]]) -> None:
        for deployment, chunk in messages:
            if "send" in self.away:
                raise Unavailable("away")
            assert deployment.name == chunk.deployment
            self.sent.append(chunk)

    @property
    def jobs(self) -> dict[str, str]:
        """Job -> deployment."""
        return {job_id: chunk.deployment for chunk in self.sent for job_id, _ in chunk.jobs}


class Scene:
    def __init__(self, store: Store) -> None:
        self.store = store
        self.sender = Remembers()
        self.loop = self.scheduler()
        self._numbers: Iterator[int] = itertools.count()

    def scheduler(self, catalog: Catalog = CATALOG) -> Loop:
        return Loop(self.store, self.sender, catalog)  # type: ignore[arg-type]

    def worker(self, worker: str = "w", **slots: int) -> None:
        named = {name.replace("_", "-"): count for name, count in slots.items()}
        info = WorkerInfo(worker, "cpu", "host", 1, 0, named, {n: 2 * count for n, count in named.items()}, {})
        self.store(transitions.heartbeat(info, []))

    def accept(self, count: int = 1, **fields: Any) -> list[str]:
        values = {"endpoint": "/v1/chat/completions", "model": "m"} | fields
        specs = [JobSpec(id=f"job_{next(self._numbers):026}", **values) for _ in range(count)]
        self.store(transitions.accept([NewJob(spec, b"{}") for spec in specs]))
        return [spec.id for spec in specs]

    def state(self, job: str) -> JobState | None:
        return self.store(reads.state(job))

    def record(self, job: str) -> reads.JobRecord:
        record = self.store(reads.job(job))
        assert record is not None
        return record

    def until_it_rests(self) -> int:
        return sum(iter(self.loop.round, 0))


@pytest.fixture
def scene(store: Store) -> Scene:
    return Scene(store)


class TestRound:
    def test_a_job_is_dispatched_and_sent_with_its_reason(self, scene: Scene) -> None:
        scene.worker(m_cpu=2)
        (job,) = scene.accept()
        assert scene.loop.round() == 1
        assert scene.sender.sent == [Chunk(deployment="m-cpu", jobs=((job, 1),))]
        record = scene.record(job)
        assert record.state is JobState.DISPATCHED
        assert record.decision is not None
        assert [c["deployment"] for c in record.decision["plan"]] == ["m-cpu", "m-cloud"]

    def test_without_workers_jobs_wait(self, scene: Scene) -> None:
        (job,) = scene.accept()
        assert scene.loop.round() == 0
        assert scene.state(job) is JobState.QUEUED

    def test_only_what_there_is_room_for_leaves_the_backlog(self, scene: Scene) -> None:
        scene.worker(m_cpu=2)
        scene.accept(20, priority="standard")
        assert scene.until_it_rests() == 4
        (lane,) = scene.store(transitions.room()).lanes
        assert lane.length == 16

    def test_the_next_candidate_takes_what_the_first_has_no_room_for(self, scene: Scene) -> None:
        scene.worker("w1", m_cpu=1)
        scene.worker("w2", m_cloud=1)
        jobs = scene.accept(3, priority="standard")
        scene.until_it_rests()
        assert scene.sender.jobs == {jobs[0]: "m-cpu", jobs[1]: "m-cpu", jobs[2]: "m-cloud"}

    def test_a_job_that_may_run_nowhere_ends_with_the_reason(self, scene: Scene) -> None:
        scene.worker(m_cpu=2)
        (job,) = scene.accept(needs=("vision",))
        assert scene.loop.round() == 1
        record = scene.record(job)
        assert record.state is JobState.FAILED
        assert record.error is not None
        assert record.error["code"] == "no_eligible_deployment"
        assert record.decision is not None

    def test_a_job_of_a_model_that_is_gone_ends_too(self, scene: Scene) -> None:
        (job,) = scene.accept(model="gone")
        assert scene.until_it_rests() == 1
        assert scene.record(job).state is JobState.FAILED

    def test_with_nothing_to_do_nothing_is_sent(self, scene: Scene) -> None:
        scene.worker(m_cpu=2)
        assert scene.loop.round() == 0

    def test_two_schedulers_never_send_more_than_there_is_room_for(self, scene: Scene) -> None:
        """Both have looked before either has sent."""
        scene.worker(n_cpu=2)
        jobs = scene.accept(8, model="n", priority="standard")
        room = transitions.room()
        seen = scene.store(room)

        def looked_before(command: Command[Any]) -> Any:
            return seen if command.args == room.args else scene.store(command)

        for _ in range(2):
            Loop(looked_before, scene.sender, CATALOG).round()  # type: ignore[arg-type]
        assert len(scene.sender.jobs) == 4
        assert [scene.state(job) for job in jobs].count(JobState.QUEUED) == 4
        assert scene.until_it_rests() == 0


class TestBudgetsInRules:
    def test_work_stays_home_when_its_budget_is_nearly_used_up(self, scene: Scene, store: Store) -> None:
        scene.worker(m_cpu=4, m_cloud=4)
        rule = {"when": "budget_used > 0.5", "require": {"tier": "cpu"}}
        budget = {"name": "b", "usd": 1, "window": "total"}
        scene.loop = scene.scheduler(
            Catalog.model_validate(
                {**CATALOG.model_dump(), "rules": [rule], "budgets": [budget], "default_policy": "cloud-first"}
            )
        )
        (before,) = scene.accept()
        scene.until_it_rests()
        store(budgets.open_([Opening("b", "total", None, 600_000_000)]))
        (after,) = scene.accept()
        scene.until_it_rests()
        assert scene.sender.jobs == {before: "m-cloud", after: "m-cpu"}


class TestFairShares:
    def test_a_tenant_that_comes_late_waits_for_its_turn_and_not_for_the_others_work(self, scene: Scene) -> None:
        first = scene.accept(3_000, priority="batch", tenant="first", prompt_tokens=50, max_output_tokens=50)
        scene.worker(m_cpu=200)
        scene.until_it_rests()
        late = scene.accept(100, priority="batch", tenant="late", prompt_tokens=50, max_output_tokens=50)
        scene.worker("w2", m_cpu=200)
        scene.until_it_rests()
        assert set(late) <= set(scene.sender.jobs)
        assert len(set(first) & set(scene.sender.jobs)) == 400 + 300

    def test_weights_come_with_the_catalogue(self, scene: Scene) -> None:
        weighted = Catalog.model_validate({**CATALOG.model_dump(), "tenant_weights": {"paying": 3}})
        scene.loop = scene.scheduler(weighted)
        for tenant in ("paying", "trying"):
            scene.accept(1_000, priority="batch", tenant=tenant, prompt_tokens=1_000, max_output_tokens=24)
        scene.worker(m_cpu=128)
        scene.until_it_rests()
        sent = Counter(scene.record(job).spec.tenant for job in scene.sender.jobs)
        assert sent["paying"] + sent["trying"] == 256
        assert 180 <= sent["paying"] <= 204


class TestJobsThatMayNotRunWhereThereIsRoom:
    def test_hold_up_nobody_behind_them(self, scene: Scene) -> None:
        scene.worker(m_cloud=4)
        restricted = scene.accept(600, privacy="restricted")
        (public,) = scene.accept(privacy="public")
        scene.until_it_rests()
        assert scene.sender.jobs == {public: "m-cloud"}
        assert {scene.state(job) for job in restricted} == {JobState.QUEUED}

    def test_run_when_there_is_room_for_them(self, scene: Scene) -> None:
        scene.worker("w1", m_cloud=4)
        (job,) = scene.accept(privacy="restricted")
        scene.until_it_rests()
        scene.worker("w2", m_cpu=1)
        assert scene.until_it_rests() == 1
        assert scene.sender.jobs == {job: "m-cpu"}

    def test_are_looked_at_again_under_other_rules(self, scene: Scene) -> None:
        scene.worker("w1", m_cloud=4)
        (job,) = scene.accept(privacy="restricted")
        scene.until_it_rests()
        opened = Catalog(
            models=CATALOG.models,
            privacy=CATALOG.privacy.model_copy(update={"restricted": CATALOG.privacy.public}),
        )
        scene.loop = scene.scheduler(opened)
        scene.until_it_rests()
        assert scene.sender.jobs == {job: "m-cloud"}

    def test_end_when_the_rules_leave_them_nowhere(self, scene: Scene) -> None:
        scene.worker("w1", m_cloud=4)
        (job,) = scene.accept(privacy="restricted")
        scene.until_it_rests()
        closed = Catalog(
            models=CATALOG.models,
            privacy=CATALOG.privacy.model_copy(
                update={"restricted": CATALOG.privacy.restricted.model_copy(update={"tiers": ("gpu",)})}
            ),
        )
        scene.loop = scene.scheduler(closed)
        scene.until_it_rests()
        assert scene.state(job) is JobState.FAILED


def with_rules(*rules: dict[str, Any]) -> Catalog:
    return Catalog.model_validate({**CATALOG.model_dump(), "rules": rules})


class TestRules:
    def test_say_where_a_job_runs(self, scene: Scene) -> None:
        scene.worker(m_cpu=4, m_cloud=4)
        scene.loop = scene.scheduler(with_rules({"when": '"far" in tags', "require": {"tier": "cloud"}}))
        (near,), (far,) = scene.accept(), scene.accept(tags=("far",))
        scene.until_it_rests()
        assert scene.sender.jobs == {near: "m-cpu", far: "m-cloud"}

    def test_a_canary_takes_its_share_of_jobs_that_are_otherwise_alike(self, scene: Scene) -> None:
        scene.worker(m_cpu=100, m_cloud=100)
        scene.loop = scene.scheduler(with_rules({"canary": {"deployment": "m-cloud", "weight": 0.5}}))
        jobs = scene.accept(100)
        scene.until_it_rests()
        assert set(scene.sender.jobs) == set(jobs)
        assert 20 < list(scene.sender.jobs.values()).count("m-cloud") < 80

    def test_a_job_that_waits_for_a_place_goes_elsewhere_when_the_hour_lets_it(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scene.worker("w1", m_cloud=4)
        scene.loop = scene.scheduler(with_rules({"when": 'time < "12:00"', "require": {"tier": "cpu"}}))
        noon_s = 1_800_000_000 // 86_400 * 86_400 + 43_200
        monkeypatch.setattr("scheduler.loop.time.time", lambda: noon_s - 1)
        (job,) = scene.accept()
        scene.until_it_rests()
        assert (scene.sender.jobs, scene.state(job)) == ({}, JobState.QUEUED)
        monkeypatch.setattr("scheduler.loop.time.time", lambda: noon_s)
        scene.until_it_rests()
        assert scene.sender.jobs == {job: "m-cloud"}

    def test_other_rules_count_for_jobs_that_wait_already(self, scene: Scene) -> None:
        scene.worker("w1", m_cloud=4)
        scene.loop.adopt(with_rules({"require": {"tier": "cpu"}}))
        (job,) = scene.accept()
        scene.until_it_rests()
        assert scene.sender.jobs == {}
        scene.loop.adopt(with_rules({"require": {"tier": "cloud"}}))
        scene.until_it_rests()
        assert scene.sender.jobs == {job: "m-cloud"}


class TestAChangedFile:
    """Jobs that wait are placed under the new rules, and behind the wall that they came in behind."""

    OPENED = Catalog(
        models=CATALOG.models, privacy=CATALOG.privacy.model_copy(update={"restricted": CATALOG.privacy.public})
    )
    CLOSED = Catalog(
        models=CATALOG.models,
        privacy=CATALOG.privacy.model_copy(
            update={"public": CATALOG.privacy.public.model_copy(update={"tiers": ("cpu",)})}
        ),
    )

    def accepted_under(self, scene: Scene, catalog: Catalog, **fields: Any) -> str:
        hash_ = policy_hash(catalog)
        scene.store(policies.keep(hash_, policy_text(catalog)))
        (job,) = scene.accept(accepted_under=hash_, **fields)
        return job

    def test_opens_no_place_to_a_job_that_was_in_before(self, scene: Scene) -> None:
        scene.worker(m_cloud=4)
        before = self.accepted_under(scene, CATALOG, privacy="restricted")
        scene.until_it_rests()
        scene.loop.adopt(self.OPENED)
        after = self.accepted_under(scene, self.OPENED, privacy="restricted")
        scene.until_it_rests()
        assert scene.sender.jobs == {after: "m-cloud"}
        assert scene.state(before) is JobState.QUEUED
        scene.worker("w2", m_cpu=4)
        scene.until_it_rests()
        assert scene.sender.jobs == {after: "m-cloud", before: "m-cpu"}

    def test_closes_places_to_it(self, scene: Scene) -> None:
        scene.loop = scene.scheduler(self.CLOSED)
        scene.worker(m_cpu=4, m_cloud=4)
        job = self.accepted_under(scene, CATALOG, privacy="public", policy="cloud-first")
        scene.until_it_rests()
        assert scene.sender.jobs == {job: "m-cpu"}

    def test_a_job_of_which_nobody_knows_the_rules_stays_at_home(self, scene: Scene) -> None:
        scene.worker(m_cpu=4, m_cloud=4)
        (job,) = scene.accept(accepted_under="0123456789abcdef", privacy="public", policy="cloud-first")
        scene.until_it_rests()
        assert scene.sender.jobs == {job: "m-cpu"}

    def test_decisions_say_what_they_were_made_under_and_it_can_be_read(self, scene: Scene) -> None:
        scene.worker(m_cpu=4)
        jobs = scene.accept()
        scene.until_it_rests()
        ruled = with_rules({"name": "r", "prefer": {"tier": "cpu"}})
        scene.loop.adopt(ruled)
        jobs += scene.accept()
        scene.until_it_rests()
        decisions = [scene.record(job).decision for job in jobs]
        hashes = [decision["policy_hash"] for decision in decisions if decision]
        assert hashes == [policy_hash(CATALOG), policy_hash(ruled)]
        texts = scene.store(policies.texts(hashes))
        assert [[rule["name"] for rule in text["rules"]] for text in texts if text] == [[], ["r"]]


class TestABrokerThatIsAway:
    def test_costs_no_attempt_when_it_is_known_before(self, scene: Scene) -> None:
        scene.worker(m_cpu=2)
        (job,) = scene.accept()
        scene.sender.away = {"connect"}
        for _ in range(5):
            with pytest.raises(Unavailable):
                scene.loop.round()
        assert scene.record(job).attempts == ()
        scene.sender.away = set()
        assert scene.loop.round() == 1

    def test_gives_the_jobs_back_when_it_goes_in_between(self, scene: Scene) -> None:
        scene.worker(m_cpu=2)
        jobs = scene.accept(4)
        scene.sender.away = {"send"}
        with pytest.raises(Unavailable):
            scene.loop.round()
        assert {scene.state(job) for job in jobs} == {JobState.QUEUED}
        scene.sender.away = set()
        assert scene.until_it_rests() == 4
        assert {attempt for chunk in scene.sender.sent for _, attempt in chunk.jobs} == {2}


class TestWhatIsKnownOfThePlaces:
    def slow(self, scene: Scene, **token_s: float) -> None:
        """Jobs have taken so long per token of an answer of 100."""
        now_ms = int(time.time() * 1000)
        pace = {"n": 50, "at": now_ms, "first_n": 0, "x": 0, "y": 0, "xx": 0, "xy": 0}
        fields = {
            f"pace {CHAT} {name.replace('_', '-')}": orjson.dumps({**pace, "engine_s": 100 * s, "token_s": s})
            for name, s in token_s.items()
        }
        length = orjson.dumps({"n": 50, "at": now_ms, "tokens": 100})
        scene.store.redis.hset("fabric:experience", mapping={**fields, f"length {CHAT} m": length})

    def test_a_deadline_that_the_first_choice_would_miss_sends_the_job_on(self, scene: Scene) -> None:
        scene.worker("w1", m_cpu=4)
        scene.worker("w2", m_cloud=4)
        self.slow(scene, m_cpu=10.0, m_cloud=0.01)
        in_a_minute = int(time.time() * 1000) + 60_000
        (late,) = scene.accept(deadline_ms=in_a_minute)
        (patient,) = scene.accept()
        scene.until_it_rests()
        assert scene.sender.jobs == {late: "m-cloud", patient: "m-cpu"}
        decision = scene.record(late).decision
        assert decision is not None
        assert [out["reason"] for out in decision["eliminated"]] == ["deadline"]
        assert decision["plan"][0]["expected_finish_s"] == pytest.approx(1.0)
        assert decision["plan"][0]["measured"] is True

    def test_one_that_every_place_would_miss_ends_the_job_with_the_reason(self, scene: Scene) -> None:
        scene.worker("w1", m_cpu=4, m_cloud=4)
        self.slow(scene, m_cpu=10.0, m_cloud=10.0)
        (job,) = scene.accept(deadline_ms=int(time.time() * 1000) + 60_000)
        scene.until_it_rests()
        record = scene.record(job)
        assert record.state is JobState.EXPIRED
        assert record.error is not None
        assert record.error["code"] == "deadline_exceeded"
        assert "m-cpu: deadline" in record.error["message"]

    def test_a_place_without_workers_comes_last_in_the_plan(self, scene: Scene) -> None:
        scene.worker("w2", m_cloud=4)
        (job,) = scene.accept()
        scene.until_it_rests()
        decision = scene.record(job).decision
        assert decision is not None
        assert [(c["deployment"], c["live"]) for c in decision["plan"]] == [("m-cloud", True), ("m-cpu", False)]

    @pytest.mark.parametrize(("kept_s", "reads_of_three"), [(1e9, 1), (0.0, 3)])
    def test_what_jobs_have_taught_is_read_now_and_then(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch, kept_s: float, reads_of_three: int
    ) -> None:
        monkeypatch.setattr("scheduler.loop._EXPERIENCE_S", kept_s)
        asked: list[Command[Any]] = []

        def heard(command: Command[Any]) -> Any:
            asked.append(command)
            return scene.store(command)

        loop = Loop(heard, scene.sender, CATALOG)  # type: ignore[arg-type]
        scene.worker(m_cpu=2)
        for _ in range(3):
            scene.accept()
            assert loop.round() == 1
        assert [command.args for command in asked].count(reads.experience().args) == reads_of_three

    def test_jobs_of_one_shape_are_decided_once_a_round(self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        decided: list[JobSpec] = []

        def counted(spec: JobSpec, *rest: Any) -> Decision:
            decided.append(spec)
            return decide(spec, *rest)

        monkeypatch.setattr("scheduler.loop.decide", counted)
        scene.worker(m_cpu=40)
        jobs = scene.accept(20, prompt_tokens=5) + scene.accept(20, prompt_tokens=6)
        assert scene.loop.round() == 40
        assert sorted(scene.sender.jobs) == jobs
        assert len(decided) == 2


class Killed(BaseException):
    """In place of SIGKILL."""


class TestASchedulerThatDies:
    """What it had in hand goes back when its lease is over: here at once, as the lease's clock is set."""

    def killed(self, scene: Scene, patch: pytest.MonkeyPatch, step: str) -> None:
        def die(*_: object) -> None:
            raise Killed

        patch.setattr(Loop if step == "_place" else Remembers, step, die)
        with pytest.raises(Killed):
            scene.loop.round()
        patch.undo()

    def comes_back(self, scene: Scene, index: str, jobs: list[str]) -> None:
        held = scene.store.redis.zrange(f"fabric:{index}", 0, -1)
        assert sorted(job.decode() for job in held) == jobs
        other = scene.scheduler()
        assert other.round() == 0, "the lease still runs"
        scene.store.redis.zadd(f"fabric:{index}", dict.fromkeys(held, 0))
        scene.store(transitions.reclaim())
        assert other.round() == len(jobs)
        assert sorted(scene.sender.jobs) == jobs

    def test_after_it_took(self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        scene.worker(m_cpu=2)
        jobs = scene.accept(3)
        self.killed(scene, monkeypatch, "_place")
        self.comes_back(scene, "taken", jobs)

    def test_after_it_dispatched_and_before_it_sent(self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        scene.worker(m_cpu=2)
        jobs = scene.accept(3)
        self.killed(scene, monkeypatch, "send")
        self.comes_back(scene, "dispatched", jobs)


class TestChunks:
    def sizes(self, jobs: int, slots: int, workers: int) -> list[int]:
        state = DeploymentState(workers=workers, slots=slots, capacity=2 * slots)
        return [len(chunk) for chunk in chunks([("job", 1)] * jobs, state)]

    def test_a_lone_job_waits_for_no_company(self) -> None:
        assert self.sizes(1, slots=64, workers=4) == [1]

    def test_every_worker_can_get_its_share(self) -> None:
        assert self.sizes(10, slots=64, workers=4) == [3, 3, 3, 1]

    def test_no_message_fills_a_small_worker(self) -> None:
        assert self.sizes(8, slots=8, workers=2) == [2, 2, 2, 2]

    def test_nor_is_one_larger_than_a_message_may_be(self) -> None:
        assert self.sizes(130, slots=1_000, workers=1) == [64, 64, 2]

    def test_a_deployment_whose_workers_have_just_gone_gets_its_message_all_the_same(self) -> None:
        assert self.sizes(2, slots=0, workers=0) == [1, 1]
