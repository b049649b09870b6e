"""Runs claimed jobs on the worker's asyncio loop: one task per job, from payload to outcome."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import PurePath

import orjson

from fabric.contracts.breaker import end_of
from fabric.contracts.catalog import PrivacyRules
from fabric.contracts.errors import Cancelled, DeadlineExceeded, EngineError, ErrorInfo, FabricError, where
from fabric.contracts.failures import end_for_breaker
from fabric.contracts.job import JobState, Measures, Usage
from fabric.contracts.job_seals import WorkerSeals
from fabric.contracts.trace import run_span
from fabric.pricing import machine_usd, token_usd
from fabric.store.transitions import Claimed, Failure, Outcome, Piece
from workers.engines.engine import Answer, Engine, Request
from workers.outbox import Outbox
from workers.retries import dispose
from workers.slots import Gate
from workers.wall import Wall

log = logging.getLogger(__name__)

_TOKEN = b'{"type":"token","chunk":'
#: What engines may take to stop their jobs when the worker ends.
_STOP_S = 3.0
_EXPIRED = "The deadline passed before the job was finished."

#: Why a running job is stopped -> the outcome it gets. ``lost`` gets none: it is someone else's now.
_STOPS: dict[str, tuple[JobState, ErrorInfo]] = {
    "cancelled": (JobState.CANCELLED, Cancelled("The job was cancelled.").info),
    "expired": (JobState.EXPIRED, DeadlineExceeded(_EXPIRED).info),
    # Only what it has taken counts: another try has given the job its end.
    "outrun": (JobState.CANCELLED, Cancelled("A second try elsewhere was quicker.").info),
}


@dataclass(slots=True, eq=False)
class _Flight:
    """One attempt, from its claim to its end."""

    job: Claimed
    deployment: str
    task: asyncio.Task[None] = field(init=False)
    began: float = field(default_factory=time.perf_counter)
    entered: float | None = None  #: when the engine got it
    stopped: str | None = None  #: why, once it was told to stop
    pieces: int = 0  #: of a streamed answer, so far
    last: bytes = b""  #: of them

    @property
    def engine_s(self) -> float:
        return 0.0 if self.entered is None else time.perf_counter() - self.entered

    @property
    def left_s(self) -> float | None:
        """To the job's deadline. The store's clock said how long that is: this machine's may be wrong, and jump."""
        left_ms = self.job.left_ms
        return None if left_ms is None else left_ms / 1000 - (time.perf_counter() - self.began)


class Runner:
    """All in-flight jobs of one worker, on the loop's thread."""

    def __init__(
        self,
        engines: dict[str, Engine],
        outbox: Outbox,
        done: Callable[[str], None],
        seals: WorkerSeals,
        wall: Wall | None = None,
    ) -> None:
        """``done`` is called with the deployment's name whenever one of its jobs is over. ``seals`` opens texts and
        closes answers. ``wall``: of the labels; without one, that of a fabric that nobody has configured."""
        self._engines = engines
        self._seals = seals
        self._wall = wall or Wall(PrivacyRules())
        self._gates = {name: Gate(engine.slots, prompts_block=engine.prompts_block) for name, engine in engines.items()}
        self._breakers = {name: engine.deployment.breaker for name, engine in engines.items()}
        self._served = {name: _told_apart(engine.deployment.model) for name, engine in engines.items()}
        self._slots = _machine_slots(engines)
        self._outbox = outbox
        self._done = done
        #: The newest attempt of each job. Older ones that are being stopped are only in ``_flying``.
        self._newest: dict[str, _Flight] = {}
        self._flying: set[_Flight] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def held(self) -> dict[str, int]:
        """Jobs in flight, with the number of the attempt."""
        return {job_id: flight.job.attempt for job_id, flight in self._newest.items()}

    def begin(self, deployment: str, jobs: Iterable[Claimed]) -> None:
        for job in jobs:
            earlier = self._newest.get(job.spec.id)
            if earlier is not None:
                if earlier.job.attempt >= job.attempt:  # the same message came twice
                    self._done(deployment)
                    continue
                # This worker was taken for dead, and now the job has come back to it.
                self.stop(job.spec.id, "lost")
            flight = _Flight(job, deployment)
            flight.task = asyncio.create_task(self._run(flight), name=job.spec.id)
            flight.task.add_done_callback(partial(self._over, flight))
            self._newest[job.spec.id] = flight
            self._flying.add(flight)
            self._idle.clear()

    def stop(self, job_id: str, why: str, *, attempt: int | None = None) -> None:
        """Stops a job in its engine; with ``attempt`` only if it is still at that one.

        ``why``: ``cancelled``, ``expired``, ``outrun`` or ``lost``.
        """
        flight = self._newest.get(job_id)
        if flight is not None and flight.stopped is None and attempt in (None, flight.job.attempt):
            flight.stopped = why
            if why == "lost":
                self._engines[flight.deployment].let_go(job_id)
            flight.task.cancel()

    def resize(self) -> None:
        """Lets as many requests run side by side as the engines have slots by now."""
        for name, engine in self._engines.items():
            self._gates[name].resize(engine.slots)
        self._slots = _machine_slots(self._engines)

    def set_down(self) -> list[str]:
        """Stops the jobs that only wait here for work that goes on elsewhere; answers their ids. Whoever has them
        next goes on waiting."""
        waiting = [job_id for job_id, flight in self._newest.items() if self._engines[flight.deployment].waits]
        for job_id in waiting:
            self.stop(job_id, "lost")
        return waiting

    async def drained(self, grace_s: float) -> None:
        """Waits for the jobs in flight, then stops those that are left without an outcome."""
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        for job_id in self.held:
            self.stop(job_id, "lost")
        with suppress(TimeoutError):
            async with asyncio.timeout(_STOP_S):
                await self._idle.wait()
        if self._flying:
            log.warning("%d jobs don't stop in their engines; they are left there", len(self._flying))

    def _over(self, flight: _Flight, task: asyncio.Task[None]) -> None:
        # Here and not in the task: one that is stopped before its first step never gets to say so.
        if task.cancelled() and flight.stopped in _STOPS:
            state, error = _STOPS[flight.stopped]
            self._end(flight, state, error)
        self._flying.discard(flight)
        if self._newest.get(flight.job.spec.id) is flight:
            del self._newest[flight.job.spec.id]
        if not self._flying:
            self._idle.set()
        self._done(flight.deployment)

    async def _run(self, flight: _Flight) -> None:
        job = flight.job
        try:
            gate = self._gates[flight.deployment]
            async with gate.slot(job.spec.priority, streams=job.spec.stream) as slot:
                flight.entered = time.perf_counter()
                answer = await self._answer(self._engines[flight.deployment], flight, slot.spoken)
            self._succeeded(flight, answer)
        except FabricError as error:
            self._failed(flight, error.info)
        except Exception as error:  # noqa: BLE001 - an engine's bug must not take the worker's other jobs along
            # The text of an unforeseen error may quote the prompt: only its kind is told.
            kind = type(error).__name__
            log.error("job %s: the engine of %s raised %s%s", job.spec.id, flight.deployment, kind, where(error))
            self._failed(flight, EngineError(f"The engine failed in an unforeseen way ({kind}).").info)

    async def _answer(self, engine: Engine, flight: _Flight, spoken: Callable[[], None]) -> Answer:
        job = flight.job
        self._wall.check(job.spec, engine.deployment)
        payload = orjson.loads(self._seals.request(job.spec, job.payload))
        left_s = flight.left_s
        deadline_ms = None if left_s is None else int((time.time() + left_s) * 1000)
        spec = job.spec
        traceparent = run_span(spec.trace, spec.id, job.attempt) if spec.trace else None
        request = Request(spec.id, spec.endpoint, payload["body"], spec.stream, deadline_ms, traceparent)

        def emit(chunk: bytes) -> None:
            flight.pieces += 1
            flight.last = chunk
            if flight.pieces == 1:
                spoken()
            self._outbox.piece(Piece(job.spec.id, job.attempt, self._seals.piece(job.spec, _TOKEN + chunk + b"}")))

        if left_s is None:
            return await engine.run(request, emit)
        if left_s <= 0:
            raise DeadlineExceeded(_EXPIRED)
        deadline = asyncio.timeout(left_s)
        try:
            async with deadline:
                return await engine.run(request, emit)
        except TimeoutError:
            if not deadline.expired():
                raise  # the engine's own
            flight.stopped = "expired"
            raise DeadlineExceeded(_EXPIRED) from None

    def _succeeded(self, flight: _Flight, answer: Answer) -> None:
        measures = self._measures(flight, answer.usage, answer.first_token_s, answer.engine_s)
        job = flight.job
        if job.spec.trace:
            measures = replace(measures, finish_reasons=_finish_reasons(answer, flight.last))
        body = orjson.dumps(answer.body) if answer.body else b""
        self._outbox.outcome(
            Outcome(
                job.spec.id,
                job.attempt,
                JobState.SUCCEEDED,
                self._seals.answer(job.spec, body),
                measures=measures.dump(),
                end=end_of(measures.engine_s, answer.usage.output_tokens, self._breakers[flight.deployment]),
            ),
        )

    def _failed(self, flight: _Flight, error: ErrorInfo) -> None:
        if error.code == DeadlineExceeded.code:
            self._end(flight, JobState.EXPIRED, error)
            return
        job = flight.job
        disposition = dispose(error, job.failures + 1, attempt=job.attempt, left_s=flight.left_s)
        if disposition.action == "fail" or disposition.action == "park":
            self._end(flight, JobState.DEAD if disposition.action == "park" else JobState.FAILED, error)
            return
        measures = self._measures(flight, self._broken_off(flight))
        self._outbox.failure(
            Failure(
                job.spec.id,
                job.attempt,
                disposition.delay_ms,
                error,
                disposition.action,
                measures.dump() if measures.usage.total_tokens or measures.cost_usd else b"",
                measures.cost_usd,
                job.failures,
            )
        )

    def _end(self, flight: _Flight, state: JobState, error: ErrorInfo) -> None:
        measures = self._measures(flight, self._broken_off(flight)).dump()
        job = flight.job
        end = end_for_breaker(error, job.failures)
        self._outbox.outcome(Outcome(job.spec.id, job.attempt, state, error=error, measures=measures, end=end))

    def _broken_off(self, flight: _Flight) -> Usage:
        """What an answer that broke off took, as far as can be told from outside: a piece is about a token. One that
        was stopped in its engine had its prompt there, at least, unless it only waited for its turn elsewhere."""
        waits = self._engines[flight.deployment].waits
        if not flight.pieces and (waits or flight.stopped is None or flight.entered is None):
            return Usage()
        return Usage(flight.job.spec.prompt_tokens, flight.pieces, estimated=True)

    def _measures(
        self, flight: _Flight, usage: Usage, first_token_s: float | None = None, engine_s: float | None = None
    ) -> Measures:
        price = self._engines[flight.deployment].deployment.price
        engine_s = flight.engine_s if engine_s is None else engine_s
        machine = machine_usd(price, engine_s, self._slots)
        tokens = token_usd(price, usage.input_tokens, usage.output_tokens, usage.cached_input_tokens)
        return Measures(
            gate_s=(flight.entered or time.perf_counter()) - flight.began,
            engine_s=engine_s,
            first_token_s=first_token_s,
            usage=usage,
            cost_usd=tokens + machine,
            machine_usd=machine,
            price_version=price.version,
            served_model=self._served[flight.deployment],
        )


def _machine_slots(engines: Mapping[str, Engine]) -> int:
    """What shares the machine's cost: a job that only waits takes nothing of the machine."""
    return sum(engine.slots for engine in engines.values() if not engine.waits)


def _finish_reasons(answer: Answer, last: bytes) -> tuple[str, ...]:
    """Of a whole answer, or of a stream by its last piece."""
    body = answer.body or (orjson.loads(last) if last else {})
    reasons = (choice.get("finish_reason") for choice in body.get("choices", ()))
    return tuple(reason for reason in reasons if isinstance(reason, str))


def _told_apart(model: str) -> str:
    """The model's name; of a file only its own, not where it lies."""
    return PurePath(model).name if model.startswith("/") else model
