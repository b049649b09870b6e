"""Jobs on the worker's loop: from payload to outcome, whatever the engine does."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Any

import orjson
import pytest

from fabric.contracts.catalog import Deployment, Price
from fabric.contracts.errors import (
    EngineError,
    EngineRejected,
    InvalidRequest,
    RateLimited,
    StreamBroken,
    Unavailable,
)
from fabric.contracts.job import JobSpec, JobState, Measures, Usage
from fabric.contracts.job_seals import HomeSeals, ReadingZones, WorkerSeals
from fabric.contracts.secret import Secrets
from fabric.contracts.zones import WorkerKeys
from fabric.store.transitions import Claimed, Failure, Outcome, Piece
from workers.engines.engine import Answer, Emit, Engine, Request
from workers.runner import Runner

SECRETS = Secrets.passing()
HOME, SEALS = HomeSeals(SECRETS), WorkerSeals(WorkerKeys.of(SECRETS, ["local"]))

Act = Callable[[Request, Emit], Awaitable[Answer]]


class Scripted(Engine):
    """Does what the test says."""

    def __init__(self, act: Act, slots: int = 8) -> None:
        price = Price(input_per_million=1, output_per_million=2)
        super().__init__(Deployment(name="d", engine="mock", tier="cpu", model="org/model", price=price))
        self.act = act
        self.wanted = slots

    @property
    def slots(self) -> int:
        return self.wanted

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def run(self, request: Request, emit: Emit) -> Answer:
        return await self.act(request, emit)


class Ends:
    """In place of ``Outbox``: keeps what was put in."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.outcomes: list[Outcome] = []
        self.failures: list[Failure] = []
        self.piece = self.pieces.append
        self.outcome = self.outcomes.append
        self.failure = self.failures.append


class Bench:
    def __init__(self, act: Act, slots: int = 8) -> None:
        self.ends = Ends()
        self.engine = Scripted(act, slots)
        self.done: list[str] = []
        self.runner = Runner({"d": self.engine}, self.ends, self.done.append, SEALS)  # type: ignore[arg-type]

    async def run(self, *jobs: Claimed) -> None:
        """Until all are over."""
        self.runner.begin("d", jobs)
        await self.runner.drained(30)

    def outcome(self) -> Outcome:
        (outcome,) = self.ends.outcomes
        assert self.ends.failures == []
        return outcome


def job(number: int = 1, *, attempt: int = 1, failures: int = 0, **fields: Any) -> Claimed:
    spec = JobSpec(**({"id": f"job_{number}", "endpoint": "/v1/chat/completions", "model": "m"} | fields))
    body = {"messages": [{"role": "user", "content": "my secret"}]}
    plain = orjson.dumps({"endpoint": spec.endpoint, "body": body, "stream": spec.stream})
    payload = HOME.payload(spec, plain, ReadingZones(frozenset({"local"}), frozenset()))
    left_ms = None if spec.deadline_ms is None else spec.deadline_ms - int(time.time() * 1000)
    return Claimed(spec, attempt, payload, failures, left_ms)


async def answer(request: Request, emit: Emit) -> Answer:
    return Answer({"choices": []}, Usage(input_tokens=100, output_tokens=50))


def raising(error: BaseException) -> Act:
    async def act(request: Request, emit: Emit) -> Answer:
        raise error

    return act


class Stuck:
    """Never answers; knows who is in it and who was stopped."""

    def __init__(self) -> None:
        self.inside: set[str] = set()
        self.entered = asyncio.Event()
        self.stopped: list[str] = []

    async def __call__(self, request: Request, emit: Emit) -> Answer:
        self.inside.add(request.job_id)
        self.entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.stopped.append(request.job_id)
            raise
        raise AssertionError


class TestAnAnswer:
    async def test_is_committed_with_what_it_took(self) -> None:
        bench = Bench(answer)
        await bench.run(job(attempt=3))
        outcome = bench.outcome()
        assert (outcome.job_id, outcome.attempt, outcome.state) == ("job_1", 3, JobState.SUCCEEDED)
        assert orjson.loads(HOME.answer("default", outcome.job_id, outcome.result)) == {"choices": []}
        measures = Measures.load(outcome.measures)
        assert measures.cost_usd == pytest.approx(200e-6)
        assert (measures.usage.output_tokens, measures.served_model) == (50, "org/model")
        assert bench.done == ["d"]

    async def test_the_engine_gets_the_body(self) -> None:
        seen: list[Request] = []

        async def act(request: Request, emit: Emit) -> Answer:
            seen.append(request)
            return await answer(request, emit)

        await Bench(act).run(job(stream=True))
        (request,) = seen
        assert request.body == {"messages": [{"role": "user", "content": "my secret"}]}
        assert (request.job_id, request.stream) == ("job_1", True)

    async def test_a_streams_chunks_are_pieces_of_its_attempt(self) -> None:
        async def act(request: Request, emit: Emit) -> Answer:
            emit(b'{"choices":[1]}')
            emit(b'{"choices":[2]}')
            return Answer({}, Usage(), first_token_s=0.5)

        bench = Bench(act)
        await bench.run(job(attempt=2, stream=True))
        assert [(p.job_id, p.attempt) for p in bench.ends.pieces] == [("job_1", 2)] * 2
        assert orjson.loads(HOME.event("default", "job_1", bench.ends.pieces[1].body)) == {
            "type": "token",
            "chunk": {"choices": [2]},
        }
        assert bench.outcome().result == b""
        assert Measures.load(bench.outcome().measures).first_token_s == 0.5

    async def test_one_that_broke_off_is_charged_for_what_it_had_said(self) -> None:
        async def act(request: Request, emit: Emit) -> Answer:
            emit(b'{"choices":[1]}')
            emit(b'{"choices":[2]}')
            raise InvalidRequest("no")

        bench = Bench(act)
        await bench.run(job(stream=True, prompt_tokens=10))
        measures = Measures.load(bench.outcome().measures)
        assert measures.usage == Usage(10, 2, estimated=True)
        assert measures.cost_usd > 0


class TestAFailure:
    async def test_that_may_pass_is_tried_again_later(self) -> None:
        bench = Bench(raising(EngineError("stumbled")))
        await bench.run(job(attempt=4, failures=0))
        (failure,) = bench.ends.failures
        assert (failure.job_id, failure.attempt, failure.error.code) == ("job_1", 4, "engine_error")
        assert bench.ends.outcomes == []

    async def test_after_the_third_it_leaves_for_its_next_place(self) -> None:
        bench = Bench(raising(EngineError("stumbled")))
        await bench.run(job(attempt=3, failures=2))
        (failure,) = bench.ends.failures
        assert (failure.action, failure.error.code, failure.cost_usd) == ("leave", "engine_error", 0.0)
        assert bench.ends.outcomes == []

    async def test_what_it_had_cost_goes_along(self) -> None:
        async def act(request: Request, emit: Emit) -> Answer:
            emit(b'{"choices":[1]}')
            raise EngineError("broke off")

        bench = Bench(act)
        await bench.run(job(stream=True, prompt_tokens=10))
        (failure,) = bench.ends.failures
        assert failure.cost_usd == pytest.approx(12e-6)
        assert Measures.load(failure.measures).usage == Usage(10, 1, estimated=True)

    async def test_that_nothing_more_can_mend_parks_the_job(self) -> None:
        bench = Bench(raising(Unavailable("away")))
        await bench.run(job(attempt=3, failures=2))
        assert bench.outcome().state is JobState.DEAD

    async def test_that_is_a_wait_is_told_as_one(self) -> None:
        bench = Bench(raising(RateLimited("later", retry_after_s=1)))
        await bench.run(job(attempt=9, failures=2))
        (failure,) = bench.ends.failures
        assert (failure.action, failure.delay_ms) == ("wait", 1_000)

    @pytest.mark.parametrize(("error", "end"), [(StreamBroken("x"), "bad"), (InvalidRequest("x"), "neutral")])
    async def test_says_what_it_means_for_the_deployment(self, error: Exception, end: str) -> None:
        bench = Bench(raising(error))
        await bench.run(job())
        assert bench.outcome().end == end

    async def test_says_it_once_for_one_job(self) -> None:
        bench = Bench(raising(EngineError("stumbled")))
        await bench.run(job(attempt=3, failures=2))
        assert bench.ends.failures[0].failures == 2
        parked = Bench(raising(StreamBroken("broke off")))
        await parked.run(job(attempt=3, failures=2))
        assert parked.outcome().end == "neutral"

    async def test_attempts_that_no_engine_failed_do_not_count(self) -> None:
        bench = Bench(raising(EngineError("stumbled")))
        await bench.run(job(attempt=99, failures=1))
        assert len(bench.ends.failures) == 1

    async def test_of_the_callers_making_ends_it(self) -> None:
        bench = Bench(raising(EngineRejected("no such option")))
        await bench.run(job())
        assert bench.outcome().state is JobState.FAILED

    @pytest.mark.parametrize("error", [KeyError("my secret"), TimeoutError("my secret"), ValueError("my secret")])
    async def test_that_nobody_foresaw_is_told_without_its_text(
        self, error: Exception, caplog: pytest.LogCaptureFixture
    ) -> None:
        bench = Bench(raising(error))
        with caplog.at_level(logging.DEBUG):
            await bench.run(job(deadline_ms=int(time.time() * 1000) + 60_000))
        (failure,) = bench.ends.failures
        assert type(error).__name__ in failure.error.message
        assert "my secret" not in failure.error.message + caplog.text
        assert "job_1" in caplog.text

    async def test_an_answer_that_is_no_json_is_one(self) -> None:
        async def act(request: Request, emit: Emit) -> Answer:
            return Answer({"choices": object()}, Usage())

        bench = Bench(act)
        await bench.run(job())
        assert len(bench.ends.failures) == 1

    @pytest.mark.parametrize("payload", [b"", b"{}", job(2).payload])
    async def test_a_text_that_is_gone_plain_or_anothers_ends_the_job(self, payload: bytes) -> None:
        bench = Bench(answer)
        await bench.run(Claimed(job().spec, 1, payload))
        assert (error := bench.outcome().error) is not None
        assert (error.code, error.fault) == ("broken_seal", "fabric")

    async def test_a_text_for_other_zones_goes_elsewhere(self) -> None:
        bench = Bench(answer)
        foreign = HOME.payload(job().spec, b"{}", ReadingZones(frozenset(), frozenset({"cloud"})))
        await bench.run(Claimed(job().spec, 1, foreign))
        (failure,) = bench.ends.failures
        assert (failure.error.code, failure.action) == ("label_forbids", "leave")

    async def test_takes_no_other_job_along(self) -> None:
        async def act(request: Request, emit: Emit) -> Answer:
            if request.job_id == "job_1":
                raise RuntimeError
            return await answer(request, emit)

        bench = Bench(act)
        await bench.run(job(1), job(2))
        assert [o.job_id for o in bench.ends.outcomes] == ["job_2"]


class TestStopping:
    @pytest.mark.parametrize("why", ["cancelled", "expired"])
    async def test_reaches_the_engine_and_is_the_outcome(self, why: str) -> None:
        stuck = Stuck()
        bench = Bench(stuck)
        bench.runner.begin("d", [job(prompt_tokens=7)])
        await stuck.entered.wait()
        bench.runner.stop("job_1", why)
        await bench.runner.drained(30)
        assert stuck.stopped == ["job_1"]
        assert bench.outcome().state.value == why
        measures = Measures.load(bench.outcome().measures)
        assert measures.engine_s > 0
        assert measures.usage == Usage(7, 0, estimated=True)  # its prompt was there
        assert measures.cost_usd == pytest.approx(7e-6)

    async def test_a_lost_lease_has_no_outcome(self) -> None:
        stuck = Stuck()
        bench = Bench(stuck)
        bench.runner.begin("d", [job()])
        await stuck.entered.wait()
        bench.runner.stop("job_1", "lost")
        await bench.runner.drained(30)
        assert stuck.stopped == ["job_1"]
        assert bench.ends.outcomes == bench.ends.failures == []
        assert bench.done == ["d"]

    async def test_before_the_first_step_counts_too(self) -> None:
        bench = Bench(answer)
        bench.runner.begin("d", [job(prompt_tokens=7)])
        bench.runner.stop("job_1", "cancelled")
        await bench.runner.drained(30)
        assert bench.outcome().state is JobState.CANCELLED
        assert Measures.load(bench.outcome().measures).usage == Usage()

    async def test_while_it_waits_for_a_slot(self) -> None:
        stuck = Stuck()
        bench = Bench(stuck, slots=1)
        bench.runner.begin("d", [job(1), job(2)])
        await stuck.entered.wait()
        bench.runner.stop("job_2", "cancelled")
        while not bench.ends.outcomes:
            await asyncio.sleep(0)
        assert stuck.inside == {"job_1"}
        assert Measures.load(bench.outcome().measures).engine_s == 0
        bench.runner.stop("job_1", "lost")
        await bench.runner.drained(30)

    async def test_only_the_attempt_that_is_meant(self) -> None:
        stuck = Stuck()
        bench = Bench(stuck)
        bench.runner.begin("d", [job(attempt=2)])
        await stuck.entered.wait()
        bench.runner.stop("job_1", "lost", attempt=1)
        assert bench.runner.held == {"job_1": 2}
        bench.runner.stop("job_1", "lost", attempt=2)
        await bench.runner.drained(30)
        assert bench.runner.held == {}

    async def test_unknown_jobs_and_second_words_change_nothing(self) -> None:
        stuck = Stuck()
        bench = Bench(stuck)
        bench.runner.begin("d", [job()])
        await stuck.entered.wait()
        bench.runner.stop("job_9", "cancelled")
        bench.runner.stop("job_1", "cancelled")
        bench.runner.stop("job_1", "lost")
        await bench.runner.drained(30)
        assert bench.outcome().state is JobState.CANCELLED


class TestDeadlines:
    async def test_pass_in_the_engine(self) -> None:
        stuck = Stuck()
        bench = Bench(stuck)
        await bench.run(job(deadline_ms=int(time.time() * 1000) + 50))
        assert bench.outcome().state is JobState.EXPIRED

    async def test_that_have_passed_spare_the_engine(self) -> None:
        stuck = Stuck()
        bench = Bench(stuck)
        await bench.run(job(deadline_ms=1))
        assert bench.outcome().state is JobState.EXPIRED
        assert stuck.inside == set()

    async def test_count_by_the_stores_clock_whatever_this_machine_says(self) -> None:
        bench = Bench(answer)
        await bench.run(replace(job(deadline_ms=1), left_ms=60_000))
        assert bench.outcome().state is JobState.SUCCEEDED


class TestTheSameJobAgain:
    async def test_in_the_same_attempt_runs_once(self) -> None:
        bench = Bench(answer)
        await bench.run(job(), job())
        assert len(bench.ends.outcomes) == 1
        assert bench.done == ["d", "d"]

    async def test_in_a_later_attempt_replaces_the_earlier_one(self) -> None:
        """This worker was taken for dead, and the job came back to it."""
        stuck = Stuck()
        bench = Bench(stuck)
        bench.runner.begin("d", [job(attempt=1)])
        await stuck.entered.wait()
        bench.engine.act = answer
        bench.runner.begin("d", [job(attempt=2)])
        assert bench.runner.held == {"job_1": 2}
        await bench.runner.drained(30)
        assert stuck.stopped == ["job_1"]
        assert bench.outcome().attempt == 2
        assert bench.done == ["d", "d"]


class TestSlots:
    async def test_as_many_run_side_by_side_as_the_engine_has_slots_by_now(self) -> None:
        stuck = Stuck()
        bench = Bench(stuck, slots=1)
        bench.runner.begin("d", [job(n) for n in range(4)])
        await self.inside(stuck, 1)
        bench.engine.wanted = 3
        bench.runner.resize()
        await self.inside(stuck, 3)
        await bench.runner.drained(0)

    async def inside(self, stuck: Stuck, count: int) -> None:
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(stuck.inside) == count


class TestDraining:
    async def test_waits_for_what_runs(self) -> None:
        go = asyncio.Event()

        async def act(request: Request, emit: Emit) -> Answer:
            await go.wait()
            return await answer(request, emit)

        bench = Bench(act)
        bench.runner.begin("d", [job()])
        drained = asyncio.create_task(bench.runner.drained(30))
        await asyncio.sleep(0)
        go.set()
        await drained
        assert bench.outcome().state is JobState.SUCCEEDED

    async def test_but_not_longer_than_its_grace(self) -> None:
        stuck = Stuck()
        bench = Bench(stuck)
        bench.runner.begin("d", jobs(3))
        await bench.runner.drained(0.01)
        assert len(stuck.stopped) == 3
        assert bench.ends.outcomes == []


def jobs(count: int) -> Iterable[Claimed]:
    return [job(n) for n in range(count)]
