"""Who gets a second try, where, when, and how many do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.contracts.catalog import Catalog
from fabric.contracts.experience import AnswerLength, Experience, Pace, survival
from fabric.contracts.ids import new_id
from fabric.contracts.job import JobSpec, JobState
from fabric.contracts.worker import WorkerInfo
from fabric.routing import DeploymentState, World, decide, late_after_s
from fabric.store import Store, budgets, reads, transitions
from fabric.store.budgets import Opening
from fabric.store.transitions import Dispatch, NewJob
from scheduler.hedging import BURST, Hedge, Hedges, second

if TYPE_CHECKING:
    from tests.conftest import Valkey

CHAT = "/v1/chat/completions"
NOW_MS = 1_000_000
CATALOG = Catalog.model_validate(
    {
        "models": [
            {
                "name": "m",
                "deployments": [
                    {"name": "near", "engine": "mock", "tier": "cpu"},
                    {"name": "far", "engine": "mock", "tier": "cloud", "price": {"output_per_million": 10}},
                ],
            }
        ],
        "policies": {"twice": {"kind": "local-first", "hedge": True}},
        "default_policy": "twice",
    }
)
LENGTH = AnswerLength(100, NOW_MS, 10.0, survival([0, 0, 0, 90, 0, 0, 0, 0, 0, 9, 1] + [0] * 22, [0] * 33))


def pace(engine_s: float = 1.0) -> Pace:
    return Pace(50, NOW_MS, engine_s, base_s=0.5, per_prompt_token_s=0.0, per_output_token_s=0.1, first_tokens=50)


def world(*live: str, **paces: Pace) -> World:
    experience = Experience({(CHAT, name): pace for name, pace in paces.items()}, {(CHAT, "m"): LENGTH})
    return World({name: DeploymentState(1, 4, 8) for name in live}, experience, NOW_MS)


BOTH = world("near", "far", near=pace(), far=pace())


def spec(**fields: Any) -> JobSpec:
    return JobSpec(**({"id": "job_1", "endpoint": CHAT, "model": "m", "max_output_tokens": 100} | fields))


def found(job: JobSpec, seen: World = BOTH, catalog: Catalog = CATALOG) -> tuple[float, JobSpec, str] | None:
    decision = decide(job, catalog, "h", seen)
    return second(job, decision, decision.plan[0].deployment, seen, catalog)


class TestWho:
    def test_a_job_that_takes_longer_than_nineteen_of_twenty(self) -> None:
        hedge = found(spec())
        assert hedge is not None
        after_s, twin, place = hedge
        assert after_s == pytest.approx(late_after_s(spec(), CATALOG.by_deployment["near"], BOTH) or 0)
        assert after_s == pytest.approx(0.5 + 0.1 * 32), "of twenty answers nineteen have at most 32 tokens"
        assert (twin.hedge_of, twin.deployment, place) == ("job_1", "far", "far")
        assert twin.id != "job_1"
        assert replace(twin, id="job_1", hedge_of=None, deployment=None) == spec()

    def test_a_stream_that_hasnt_begun_when_it_should_have_twice(self) -> None:
        hedge = found(spec(stream=True))
        assert hedge is not None
        after_s, twin, place = hedge
        assert after_s == pytest.approx(2 * 0.5)
        assert (twin.stream, twin.hedge_of, place) == (True, "job_1", "far")

    @pytest.mark.parametrize("first_tokens", [0, 4])
    def test_but_not_where_too_few_first_tokens_are_known(self, first_tokens: int) -> None:
        near = replace(pace(), first_tokens=first_tokens)
        assert found(spec(stream=True), world("near", "far", near=near, far=pace())) is None

    @pytest.mark.parametrize(
        "fields",
        [
            {"batch_id": "b", "line_no": 1, "priority": "batch"},
            {"shadow_of": "job_0"},
            {"hedge_of": "job_0"},
            {"deployment": "near"},
            {"privacy": "restricted"},
            {"allowed_tiers": ("cpu",)},
            {"policy": "local-first"},
        ],
    )
    def test_nobody_else(self, fields: dict[str, Any]) -> None:
        assert found(spec(**fields)) is None

    def test_nobody_where_nobody_else_is_there_or_too_little_is_known(self) -> None:
        assert found(spec(), world("near", near=pace(), far=pace())) is None
        assert found(spec(), world("near", "far")) is None

    def test_one_cap_holds_for_both(self) -> None:
        """100 tokens for $10 a million: $0.001 at worst."""
        capped = found(spec(max_cost_usd=0.001))
        assert capped is not None
        assert capped[1].max_cost_usd == pytest.approx(0.001)
        other_way = CATALOG.model_copy(
            update={"policies": {"twice": CATALOG.policies["twice"].model_copy(update={"kind": "cloud-first"})}}
        )
        left = found(spec(max_cost_usd=0.0015), catalog=Catalog.model_validate(other_way.model_dump()))
        assert left is not None
        assert left[1].max_cost_usd == pytest.approx(0.0005)

    @given(
        st.sampled_from(("public", "internal", "confidential", "restricted")),
        st.sampled_from(((), ("cpu",), ("cloud",), ("cpu", "cloud"))),
        st.none() | st.floats(0, 0.01),
    )
    def test_never_across_a_wall(self, privacy: Any, tiers: Any, cap: float | None) -> None:
        """Where it goes the job itself might have gone: it is in its plan."""
        job = spec(privacy=privacy, allowed_tiers=tiers, max_cost_usd=cap)
        decision = decide(job, CATALOG, "h", BOTH)
        if decision.plan and (hedge := second(job, decision, decision.plan[0].deployment, BOTH, CATALOG)):
            assert hedge[2] in {candidate.deployment for candidate in decision.plan[1:]}
            again = decide(hedge[1], CATALOG, "h", BOTH)
            assert [candidate.deployment for candidate in again.plan] == [hedge[2]]


@pytest.fixture
def running(store: Store) -> Callable[[], str]:
    """A job at its first attempt."""

    def run() -> str:
        job = JobSpec(f"job_{time.time_ns():026}", CHAT, "m", max_output_tokens=100)
        store(transitions.heartbeat(WorkerInfo("w", "cpu", "h", 1, 0, {"near": 4}, {"near": 8}, {}), []))
        store(budgets.open_([Opening("b", "total", None, 0)]))
        store(transitions.accept([NewJob(job, b"sealed", placeholders=b"p", charges="b total 100000 70 0")]))
        store(transitions.take([(job.lane, 1)]))
        store(transitions.dispatch([Dispatch(job.id, "near", "cpu", b"{}")]))
        store(transitions.claim("w", [(job.id, 1)]))
        return job.id

    return run


@pytest.fixture
def hedges(store: Store) -> Iterator[Hedges]:
    hedges, stop = Hedges(store), threading.Event()
    thread = threading.Thread(target=hedges.run, args=(stop,))
    thread.start()
    yield hedges
    stop.set()
    hedges.wake()
    thread.join()


QUICK = world("near", "far", near=replace(pace(), base_s=0.0, per_output_token_s=0.0), far=pace())


def consider(hedges: Hedges, job_id: str, attempt: int = 1) -> None:
    job = spec(id=job_id)
    hedges.consider(job, decide(job, CATALOG, "h", QUICK), attempt, "near", QUICK, CATALOG)


def until(look: Callable[[], Any]) -> Any:
    limit = time.monotonic() + 60
    while not (seen := look()):
        assert time.monotonic() < limit
        time.sleep(0.01)
    return seen


class TestWhen:
    def test_it_lines_up_for_its_place_with_the_same_payload(self, store: Store, hedges: Hedges, running: Any) -> None:
        job_id = running()
        consider(hedges, job_id)
        until(lambda: store(reads.hedges()).get("begun"))
        (taken,) = store(transitions.take([(spec().lane, 5)]))
        assert (taken.spec.hedge_of, taken.spec.deployment) == (job_id, "far")
        assert store(reads.payload(taken.spec.id)) == b"sealed"
        assert store(reads.placeholders(taken.spec.id)) == b"p"
        (balance,) = store(budgets.balances([("b", "total")]))
        assert balance is not None
        assert balance.reserved == 140, "as much again, out of the same budget"

    def test_not_for_a_job_that_is_done_or_at_another_attempt(self, store: Store, hedges: Hedges, running: Any) -> None:
        done, other = running(), running()
        store(transitions.commit([transitions.Outcome(done, 1, JobState.SUCCEEDED, b"{}")]))
        consider(hedges, done)
        consider(hedges, other, attempt=2)
        consider(hedges, last := running())
        until(lambda: store(reads.hedges()).get("begun"))
        (taken,) = store(transitions.take([(spec().lane, 5)]))
        assert taken.spec.hedge_of == last

    def test_it_is_known_as_one_before_anybody_can_take_it(self, valkey: Valkey, store: Store, running: Any) -> None:
        """One that was done before the first job knew of it would answer nobody."""
        ids = [running() for _ in range(100)]
        seen: list[bytes | None] = []

        def take() -> None:
            other = Store(valkey.url)
            while len(seen) < len(ids):
                for job in other(transitions.take([(spec().lane, 5)])):
                    seen.append(other.redis.hget(f"fabric:job:{job.spec.id}", "hedge_of"))
            other.close()

        taking = threading.Thread(target=take, daemon=True)
        taking.start()
        hedges = Hedges(store)
        for job_id in ids:
            twin = spec(id=new_id("job"), hedge_of=job_id, deployment="far")
            assert hedges.begin(Hedge(0.0, job_id, twin, 1, "far"))
        taking.join(60)
        assert seen == [job_id.encode() for job_id in ids]

    def test_one_in_ten_at_most_when_all_are_late(self, store: Store, hedges: Hedges, running: Any) -> None:
        ids = [running() for _ in range(60)]
        for job_id in ids:
            consider(hedges, job_id)
        until(lambda: store(reads.hedges()).get("begun", 0) >= BURST)
        consider(hedges, running())
        time.sleep(0.1)  # for the one that must not come
        assert store(reads.hedges())["begun"] <= BURST + 61 * 0.1 + 1


def test_the_scheduler_tells_of_what_it_sends(store: Store) -> None:
    from scheduler.loop import Loop

    told: list[tuple[Any, ...]] = []

    class Quiet:
        def connect(self) -> None: ...

        def send(self, messages: Any) -> None:
            list(messages)

    store(transitions.heartbeat(WorkerInfo("w", "cpu", "h", 1, 0, {"near": 4}, {"near": 8}, {}), []))
    job = spec(id="job_" + "0" * 26)
    store(transitions.accept([NewJob(job, orjson.dumps({}))]))
    Loop(store, Quiet(), CATALOG, lambda *args: told.append(args)).round()  # type: ignore[arg-type]
    ((sent, decision, attempt, place, _, _),) = told
    assert (sent.id, attempt, place, decision.policy) == (job.id, 1, "near", "twice")
    assert store(reads.silent(job.id)) is not None
