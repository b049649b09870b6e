"""Every interleaving, with crashes between any two steps, against a model of what should happen.

The machine plays two schedulers, three workers, a broker that repeats and delays messages, and
callers who cancel. Anyone may die after any step; the Valkey server is killed and restarted too.
After every step the store's records and indexes must be exactly what the model says.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import orjson
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fabric.contracts.breaker import Breaker, dump
from fabric.contracts.errors import EngineError
from fabric.contracts.job import TRANSITIONS, JobSpec, JobState
from fabric.contracts.worker import WorkerInfo
from fabric.store import Store, reads, transitions
from fabric.store.transitions import Dispatch, Failure, NewJob, Outcome, Piece, Rejection, dead_queue

if TYPE_CHECKING:
    from tests.conftest import Valkey

SCHEDULERS = ("s1", "s2")
WORKERS = ("w1", "w2", "w3")
DEPLOYMENTS = ("small-cpu", "small-gpu")
ERROR = EngineError("The engine stumbled.").info
#: Limits in milliseconds: already over, or never over in this test.
OVER, NEVER = -1, 3_600_000
#: Breakers that never open: another test's matter.
NO_BREAKERS = dump([("*", Breaker(failures=1_000_000, minimum=1_000_000))])
limits = st.sampled_from((OVER, NEVER))
counts = st.integers(1, 6)
JOBS_LIMIT = 30
RESTARTS_LIMIT = 2


@dataclass
class Job:
    """What the model knows of a job. ``place``: the one index that holds it besides ``live``."""

    spec: JobSpec
    due: int
    overdue: bool  #: its deadline has passed and nobody noticed yet
    state: JobState = JobState.QUEUED
    place: str = "lane"
    attempt: int = 0
    deployment: str = ""
    worker: str = ""
    deaths: int = 0
    failures: dict[str, int] = field(default_factory=dict)  #: by deployment
    left: bool = False  #: it is out of tries where it was, and has had no attempt since
    spoken: bool = False
    stop: JobState | None = None
    lost_at_once: bool = False  #: the lease or the wait for a claim is over
    ends: list[JobState] = field(default_factory=list)
    forgotten: bool = False
    dropped: bool = False

    @property
    def quiet(self) -> bool:
        return self.spec.batch_id is not None

    @property
    def gone(self) -> bool:
        """A batch line that the ledger has leaves no record, and a parked job that was dropped neither."""
        return (self.forgotten and self.quiet) or self.dropped

    def move(self, state: JobState, place: str) -> None:
        assert state in TRANSITIONS[self.state], f"{self.state} -> {state}"
        self.state, self.place = state, place

    def end(self, state: JobState) -> None:
        self.move(state, "dead" if state is JobState.DEAD else "")
        self.ends.append(state)
        self.stop, self.overdue, self.left = None, False, False

    def set_down(self) -> str:
        """Out of tries at its deployment: its record says so until it has another."""
        where = self.deployment, self.worker
        if self.requeue("dlq:cpu") == "ended":
            return "ended"
        self.deployment, self.worker = where
        self.left = True
        return "moving"

    def requeue(self, place: str = "lane") -> str:
        if self.stop:
            self.end(self.stop)
        elif self.spoken:
            self.end(JobState.FAILED)
        else:
            self.move(JobState.QUEUED, place)
            self.deployment = self.worker = ""
            return "queued"
        return "ended"


class Fabric(RuleBasedStateMachine):
    def __init__(self, valkey: Valkey) -> None:
        super().__init__()
        self.valkey = valkey
        self.store = Store(valkey.url)
        self.store.redis.flushall()
        self.jobs: dict[str, Job] = {}
        self.hands: dict[str, list[str]] = {scheduler: [] for scheduler in SCHEDULERS}
        #: What each worker believes to run: job -> attempt.
        self.running: dict[str, dict[str, int]] = {worker: {} for worker in WORKERS}
        self.alive: set[str] = set()
        #: Every message ever sent and every claim ever won: both may turn up again at any time.
        self.messages: list[tuple[str, int]] = []
        self.claims: list[tuple[str, int]] = []
        self.fenced = 0
        self.restarts = 0

    @initialize(late=st.booleans())
    def the_first_jobs(self, late: bool) -> None:
        self.accept(["a", "a", "b"], late=late, quiet=False)
        self.accept(["a", "b"], late=False, quiet=True)

    # What callers do.

    @rule(tenants=st.lists(st.sampled_from("ab"), min_size=1, max_size=4), late=st.booleans(), quiet=st.booleans())
    def accept(self, tenants: list[str], late: bool, quiet: bool) -> None:
        for tenant in tenants[: JOBS_LIMIT - len(self.jobs)]:
            spec = JobSpec(
                id=f"job_{len(self.jobs):03}",
                endpoint="/v1/completions",
                model="small",
                tenant=tenant,
                deadline_ms=1 if late else None,
                batch_id="batch" if quiet else None,
                priority="batch" if quiet else "interactive",
            )
            answers = self.store(transitions.accept([NewJob(spec, b"sealed"), NewJob(spec, b"again")]))
            assert [answer.verdict for answer in answers] == ["accepted", "exists"]
            due = int(self.store.redis.hget(f"fabric:job:{spec.id}", "due"))
            self.jobs[spec.id] = Job(spec, due, overdue=late)

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job = self.any_job(data)
        (answer,) = self.store(transitions.cancel([job.spec.id]))
        if job.gone:
            assert answer == ""
        elif job.state is JobState.RUNNING:
            assert answer == "stopping"
            job.stop = JobState.CANCELLED
        else:
            if not job.state.ended:
                job.end(JobState.CANCELLED)
            assert answer == job.state

    @precondition(lambda self: self.at("dead"))
    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        job = self.any_job(data)
        (answer,) = self.store(transitions.replay([job.spec.id]))
        if job.state is JobState.DEAD and not job.gone:
            job.move(JobState.QUEUED, "lane")
            job.deaths, job.spoken, job.deployment, job.worker = 0, False, "", ""
            job.failures.clear()
        assert answer == ("" if job.gone else job.state)

    @precondition(lambda self: self.at("dead"))
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        job = self.any_job(data)
        parked = job.place == "dead"
        assert self.store(transitions.drop([job.spec.id])) == [int(parked)]
        if parked:
            job.place, job.dropped = "", True

    # What schedulers do. Each step may be their last: what they had in hand is never heard of again.

    @precondition(lambda self: self.at("lane"))
    @rule(data=st.data(), scheduler=st.sampled_from(SCHEDULERS), n=counts, lease=limits)
    def take_from_a_lane(self, data: st.DataObject, scheduler: str, n: int, lease: int) -> None:
        self.take(scheduler, data.draw(st.sampled_from(self.at("lane"))).spec.lane, n, lease)

    def take(self, scheduler: str, lane: str, n: int, lease: int) -> None:
        waiting = [j for j in self.at("lane") if j.spec.lane == lane]
        expected = sorted(waiting, key=lambda j: (j.due, j.spec.id))[:n]
        taken = self.store(transitions.take([(lane, n)], lease_ms=lease))
        assert [t.spec for t in taken] == [j.spec for j in expected]
        assert [t.attempts for t in taken] == [j.attempt for j in expected]
        for job in expected:
            job.place, job.lost_at_once = "taken", lease == OVER
        self.hands[scheduler] += [t.spec.id for t in taken]

    @precondition(lambda self: self.at("dlq:cpu"))
    @rule(scheduler=st.sampled_from(SCHEDULERS), lease=limits)
    def drain_the_dead_letters(self, scheduler: str, lease: int) -> None:
        waiting = self.at("dlq:cpu")
        taken = self.store(transitions.take([(dead_queue("cpu"), JOBS_LIMIT)], lease_ms=lease))
        assert {t.spec.id for t in taken} == {job.spec.id for job in waiting}
        assert all(t.error and t.chain.code_at(self.jobs[t.spec.id].deployment) for t in taken)
        for job in waiting:
            job.place, job.lost_at_once = "taken", lease == OVER
        self.hands[scheduler] += [t.spec.id for t in taken]

    @precondition(lambda self: any(self.hands.values()))
    @rule(data=st.data(), n=counts, to=st.sampled_from(DEPLOYMENTS), wait=limits, dies=st.booleans())
    def dispatch_from_a_hand(self, data: st.DataObject, n: int, to: str, wait: int, dies: bool) -> None:
        """``dies``: before the message is sent."""
        self.dispatch(self.any_scheduler(data), n, to, wait, dies)

    def dispatch(self, scheduler: str, n: int, to: str, wait: int, dies: bool) -> None:
        chosen = self.from_hand(scheduler, n)
        expected = []
        for job in chosen:
            if job.place == "taken":
                job.move(JobState.DISPATCHED, "dispatched")
                job.attempt, job.deployment, job.lost_at_once = job.attempt + 1, to, wait == OVER
                job.left, job.worker = False, ""  # of the attempt before
                expected.append(job.attempt)
            else:
                expected.append(0)
        sent = [Dispatch(job.spec.id, to, "cpu", b"{}") for job in chosen]
        numbers = self.store(transitions.dispatch(sent, claim_within_ms=wait))
        assert numbers == expected
        if not dies:
            self.messages += [(job.spec.id, number) for job, number in zip(chosen, numbers, strict=True) if number]

    @precondition(lambda self: any(self.hands.values()))
    @rule(data=st.data(), n=counts)
    def put_back(self, data: st.DataObject, n: int) -> None:
        chosen = self.from_hand(self.any_scheduler(data), n)
        taken = [job for job in chosen if job.place == "taken"]
        assert self.store(transitions.put_back([job.spec.id for job in chosen])) == len(taken)
        for job in taken:
            job.place = "lane"

    @precondition(lambda self: any(self.hands.values()))
    @rule(data=st.data(), state=st.sampled_from((JobState.FAILED, JobState.EXPIRED, JobState.DEAD)))
    def reject(self, data: st.DataObject, state: JobState) -> None:
        chosen = self.from_hand(self.any_scheduler(data), 1)
        taken = [job for job in chosen if job.place == "taken"]
        rejections = [Rejection(job.spec.id, state, ERROR) for job in chosen]
        assert self.store(transitions.reject(rejections)) == len(taken)
        for job in taken:
            job.end(state)

    @precondition(lambda self: any(self.hands.values()))
    @rule(scheduler=st.sampled_from(SCHEDULERS))
    def scheduler_dies(self, scheduler: str) -> None:
        self.hands[scheduler] = []

    @precondition(lambda self: self.messages)
    @rule(data=st.data())
    def recall(self, data: st.DataObject) -> None:
        job_id, attempt = data.draw(st.sampled_from(self.messages))
        job = self.jobs[job_id]
        out = job.place == "dispatched" and job.attempt == attempt
        assert self.store(transitions.recall([(job_id, attempt)])) == int(out)
        if out:
            job.requeue()

    @precondition(lambda self: self.at("lane"))
    @rule(data=st.data(), n=counts, worker=st.sampled_from(WORKERS))
    def all_goes_well(self, data: st.DataObject, n: int, worker: str) -> None:
        """From a lane into a worker's hands: the common way as one step, so that runs get deep."""
        lane = data.draw(st.sampled_from(self.at("lane"))).spec.lane
        others, self.hands["s1"] = self.hands["s1"], []
        before = len(self.messages)
        self.take("s1", lane, n, NEVER)
        self.dispatch("s1", n, "small-cpu", NEVER, dies=False)
        self.hands["s1"] = others
        self.claim_chunk(worker, self.messages[before:], deaf=False)

    # What workers do. Messages come in any order, twice, and long after their time.

    @precondition(lambda self: self.messages)
    @rule(data=st.data(), worker=st.sampled_from(WORKERS), deaf=st.booleans())
    def claim(self, data: st.DataObject, worker: str, deaf: bool) -> None:
        """``deaf``: the worker never gets the answer."""
        chunk = data.draw(st.lists(st.sampled_from(self.messages[-8:]), min_size=1, max_size=4, unique=True))
        self.claim_chunk(worker, chunk, deaf)

    def claim_chunk(self, worker: str, chunk: list[tuple[str, int]], deaf: bool) -> None:
        expected = []
        for job_id, attempt in chunk:
            job = self.jobs[job_id]
            if job.place == "dispatched" and job.attempt == attempt:
                job.move(JobState.RUNNING, f"held:{worker}")
                job.worker = worker
                self.claims.append((job_id, attempt))
                expected.append(job_id)
            elif job.place == f"held:{worker}" and job.attempt == attempt:
                expected.append(job_id)
        answer = self.store(transitions.claim(worker, chunk))
        assert [claimed.spec.id for claimed in answer] == expected
        assert [claimed.failures for claimed in answer] == [
            self.jobs[job_id].failures.get(self.jobs[job_id].deployment, 0) for job_id in expected
        ]
        assert all(claimed.payload == b"sealed" for claimed in answer)
        self.alive.add(worker)
        if not deaf:
            self.running[worker] |= {claimed.spec.id: claimed.attempt for claimed in answer}

    @rule(worker=st.sampled_from(WORKERS), forgotten=limits)
    def heartbeat(self, worker: str, forgotten: int) -> None:
        known = self.running[worker]
        expected = {}
        for job_id in known:
            job = self.jobs[job_id]
            if job.place != f"held:{worker}":
                expected[job_id] = "lost"
            elif job.stop:
                expected[job_id] = job.stop.value
        if forgotten == OVER:
            for job in self.at(f"held:{worker}"):
                if job.spec.id not in known:
                    job.requeue()
        info = WorkerInfo(worker, "cpu", "host", 1, 0, {}, dict.fromkeys(DEPLOYMENTS, 4), {})
        assert self.store(transitions.heartbeat(info, list(known), forgotten_ms=forgotten)) == expected
        self.alive.add(worker)
        for job_id, why in expected.items():
            if why == "lost":
                del known[job_id]

    @precondition(lambda self: any(self.running.values()))
    @rule(worker=st.sampled_from(WORKERS))
    def worker_dies(self, worker: str) -> None:
        self.running[worker] = {}

    @precondition(lambda self: self.claims)
    @rule(worker=st.sampled_from(WORKERS))
    def hand_back(self, worker: str) -> None:
        held = self.at(f"held:{worker}")
        assert self.store(transitions.hand_back(worker)) == len(held)
        for job in held:
            job.requeue()
        self.alive.discard(worker)
        self.running[worker] = {}

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), state=st.sampled_from((JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)))
    def commit(self, data: st.DataObject, state: JobState) -> None:
        """Of any attempt that was ever claimed, so most commits of a long run come too late."""
        job, attempt, current = self.any_claim(data)
        (counted,) = self.store(transitions.commit([Outcome(job.spec.id, attempt, state, b"{}")]))
        assert counted == int(current)
        if current:
            job.end(state)
        else:
            self.fenced += 1

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), delay=st.sampled_from((0, NEVER)))
    def fail(self, data: st.DataObject, delay: int) -> None:
        job, attempt, current = self.any_claim(data)
        failure = Failure(job.spec.id, attempt, delay, ERROR)
        (answer,) = self.store(transitions.fail([failure], breakers=NO_BREAKERS))
        if current:
            job.failures[job.deployment] = job.failures.get(job.deployment, 0) + 1
            assert answer == job.requeue("delayed" if delay else "lane")
        else:
            assert answer == "fenced"
            self.fenced += 1

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """The attempt was the job's last one at its deployment."""
        job, attempt, current = self.any_claim(data)
        failure = Failure(job.spec.id, attempt, 0, ERROR, "leave")
        (answer,) = self.store(transitions.fail([failure], breakers=NO_BREAKERS))
        if current:
            assert answer == job.set_down()
        else:
            assert answer == "fenced"
            self.fenced += 1

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def emit(self, data: st.DataObject) -> None:
        job, attempt, current = self.any_claim(data)
        assert self.store(transitions.emit([Piece(job.spec.id, attempt, b'{"type":"token"}')])) == [int(current)]
        job.spoken = job.spoken or current

    # What the clock and the standing duties do.

    @precondition(lambda self: self.alive)
    @rule(deaths=st.sampled_from((2, 3)))
    def rescue(self, deaths: int) -> None:
        """Every worker is taken for dead. Those that weren't go on and are fenced."""
        sent_back = parked = 0
        for job in [job for worker in self.alive for job in self.at(f"held:{worker}")]:
            job.deaths += 1
            if job.deaths >= deaths and not job.stop:
                job.end(JobState.DEAD)
                parked += 1
            else:
                job.requeue()
                sent_back += 1
        self.alive.clear()
        assert self.store(transitions.rescue(dead_after_ms=OVER, deaths=deaths)) == (sent_back, parked)

    @precondition(lambda self: self.at("taken") or self.at("dispatched"))
    @rule()
    def reclaim(self) -> None:
        dispatched = [job for job in self.at("dispatched") if job.lost_at_once]
        taken = [job for job in self.at("taken") if job.lost_at_once]
        assert self.store(transitions.reclaim()) == (len(dispatched), len(taken))
        for job in dispatched:
            job.requeue()
        for job in taken:
            job.place = "lane"

    @precondition(lambda self: self.at("delayed"))
    @rule()
    def promote(self) -> None:
        delayed = self.at("delayed")
        if delayed:
            self.store.redis.zadd("fabric:delayed", {job.spec.id: 0 for job in delayed}, xx=True)
        assert self.store(transitions.promote()) == len(delayed)
        for job in delayed:
            job.place = "lane"

    @precondition(lambda self: any(job.overdue for job in self.jobs.values()))
    @rule()
    def expire(self) -> None:
        late = [job for job in self.jobs.values() if job.overdue]
        assert self.store(transitions.expire()) == len(late)
        for job in late:
            job.overdue = False
            if job.state is JobState.RUNNING:
                job.stop = JobState.EXPIRED
            else:
                job.end(JobState.EXPIRED)

    @precondition(lambda self: any(job.state.ended for job in self.jobs.values()))
    @rule()
    def forget(self) -> None:
        """The ledger has every end so far."""
        ended = [job for job in self.jobs.values() if job.state.ended and job.place != "dead" and not job.gone]
        assert self.store(transitions.forget(list(self.jobs))) == len(ended)
        for job in ended:
            job.forgotten = True

    @precondition(lambda self: self.at("lane"))
    @rule()
    def look(self) -> None:
        room = self.store(transitions.room())
        waiting = defaultdict(list)
        for job in self.at("lane"):
            waiting[job.spec.lane].append(job.due)
        assert {lane.name: (lane.length, lane.due_ms) for lane in room.lanes} == {
            lane: (len(dues), min(dues)) for lane, dues in waiting.items()
        }
        assert sum(room.dead.values()) == len(self.at("dlq:cpu"))

    @precondition(lambda self: self.restarts < RESTARTS_LIMIT)
    @rule(strike=st.integers(0, 4))
    def the_server_is_killed_and_comes_back(self, strike: int) -> None:
        if strike == 0:
            self.restarts += 1
            self.valkey.kill()
            self.valkey.start()

    # What must hold after every step.

    @invariant()
    def the_store_is_what_the_model_says(self) -> None:
        known = [job for job in self.jobs.values() if not job.gone]
        names = ("taken", "delayed", "dispatched", "dead", "dlq:cpu", "live", "deadlines", "workers")
        pipeline = self.store.redis.pipeline(transaction=False)
        for job in known:
            pipeline.hmget(f"fabric:job:{job.spec.id}", "state", "attempt", "deployment", "worker", "deaths", "cancel")
        lanes = sorted({job.spec.lane for job in self.jobs.values()})
        zsets = [*names, *(f"lane:{lane}" for lane in lanes)]
        sets = [*(f"held:{worker}" for worker in WORKERS), *(f"busy:{deployment}" for deployment in DEPLOYMENTS)]
        for name in zsets:
            pipeline.zrange(f"fabric:{name}", 0, -1)
        for name in sets:
            pipeline.smembers(f"fabric:{name}")
        pipeline.xlen(reads.COMPLETIONS)
        answers = pipeline.execute()
        for job, record in zip(known, answers, strict=False):
            found = tuple(value.decode() if value else "" for value in record)
            assert found == _record(job), job.spec.id
        indexes = {
            name: {member.decode() for member in members}
            for name, members in zip([*zsets, *sets], answers[len(known) :], strict=False)
        }
        assert indexes.pop("workers") == self.alive
        assert indexes == {name: set() for name in indexes} | self.expected_indexes()
        assert answers[-1] == sum(len(job.ends) for job in self.jobs.values())

    def expected_indexes(self) -> dict[str, set[str]]:
        indexes: defaultdict[str, set[str]] = defaultdict(set)
        for job in self.jobs.values():
            if job.place:
                indexes[f"lane:{job.spec.lane}" if job.place == "lane" else job.place].add(job.spec.id)
            if not job.state.ended:
                indexes["live"].add(job.spec.id)
            if job.overdue:
                indexes["deadlines"].add(job.spec.id)
            if job.state in (JobState.DISPATCHED, JobState.RUNNING):
                indexes[f"busy:{job.deployment}"].add(job.spec.id)
        return indexes

    @invariant()
    def late_commits_are_counted(self) -> None:
        assert self.store(reads.fenced_count()) == self.fenced

    def teardown(self) -> None:
        """Everybody comes back and works: every accepted job comes to its end."""
        try:
            if self.valkey.process is None:
                self.valkey.start()
            self.drain()
            self.the_store_is_what_the_model_says()
            self.every_job_ended_and_its_completions_say_so()
            self.every_log_follows_the_diagram()
        finally:
            self.store.close()

    def drain(self) -> None:
        self.rescue(deaths=3)
        if self.at("dlq:cpu"):
            self.drain_the_dead_letters("s1", OVER)
        for _ in range(3):
            self.promote()
            for job in [*self.at("taken"), *self.at("dispatched")]:
                self.store.redis.zadd(f"fabric:{job.place}", {job.spec.id: 0}, xx=True)
                job.lost_at_once = True
            self.reclaim()
        while waiting := self.at("lane"):
            self.hands["s1"] = []
            self.take("s1", waiting[0].spec.lane, n=JOBS_LIMIT, lease=NEVER)
            self.dispatch("s1", n=JOBS_LIMIT, to="small-cpu", wait=NEVER, dies=False)
        for job in self.at("dispatched"):
            message = (job.spec.id, job.attempt)
            assert len(self.store(transitions.claim("w1", [message]))) == 1
            job.move(JobState.RUNNING, "held:w1")
            job.worker = "w1"
            outcome = Outcome(*message, JobState.SUCCEEDED)
            assert self.store(transitions.commit([outcome])) == [1]
            job.end(JobState.SUCCEEDED)
            self.alive.add("w1")

    def every_job_ended_and_its_completions_say_so(self) -> None:
        assert self.store(reads.live_count()) == 0
        ends: defaultdict[str, list[JobState]] = defaultdict(list)
        for entry_id, fields in self.store.redis.execute_command("XRANGE", reads.COMPLETIONS, "-", "+"):
            completion = reads.completion(entry_id, fields)
            ends[completion.spec.id].append(JobState(completion.state))
        assert ends == {job.spec.id: job.ends for job in self.jobs.values()}
        for job in self.jobs.values():
            assert job.ends, "accepted means kept"
            assert set(job.ends[:-1]) <= {JobState.DEAD}, "one outcome, but a parked job may be replayed"

    def every_log_follows_the_diagram(self) -> None:
        for job in self.jobs.values():
            events = [orjson.loads(e) for e in self.store.redis.lrange(f"fabric:events:{job.spec.id}", 0, -1)]
            assert job.quiet or job.dropped or events
            types = [event["type"] for event in events if event["type"] != "token"]
            states = [JobState("queued" if name == "requeued" else name) for name in types]
            for before, after in pairwise(states):
                assert after in TRANSITIONS[before], (job.spec.id, states)
            numbers = [event["number"] for event in events if event["type"] == "dispatched"]
            assert numbers == list(range(1, len(numbers) + 1))

    # Choices.

    def at(self, place: str) -> list[Job]:
        return [job for job in self.jobs.values() if job.place == place]

    def any_job(self, data: st.DataObject) -> Job:
        return data.draw(st.sampled_from(list(self.jobs.values())))

    def any_scheduler(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from([scheduler for scheduler in SCHEDULERS if self.hands[scheduler]]))

    def any_claim(self, data: st.DataObject) -> tuple[Job, int, bool]:
        """An attempt that was claimed once, and whether it is still the job's."""
        job_id, attempt = data.draw(st.sampled_from(self.claims[-12:]))
        job = self.jobs[job_id]
        return job, attempt, job.state is JobState.RUNNING and job.attempt == attempt

    def from_hand(self, scheduler: str, n: int) -> list[Job]:
        hand = self.hands[scheduler]
        chosen, self.hands[scheduler] = hand[:n], hand[n:]
        return [self.jobs[job_id] for job_id in dict.fromkeys(chosen)]


def _record(job: Job) -> tuple[str, ...]:
    deaths = str(job.deaths) if job.deaths else ""
    return (job.state.value, str(job.attempt), job.deployment, job.worker, deaths, job.stop.value if job.stop else "")


def test_no_interleaving_loses_or_doubles_a_job(valkey: Valkey) -> None:
    class Machine(Fabric):
        def __init__(self) -> None:
            super().__init__(valkey)

    every = list(HealthCheck)
    run_state_machine_as_test(
        Machine, settings=settings(max_examples=50, stateful_step_count=60, deadline=None, suppress_health_check=every)
    )
