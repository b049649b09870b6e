"""Runs claimed jobs on the worker's asyncio loop: one task per job, from payload to outcome."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from functools import partial

import orjson

from fabric.contracts.catalog import Price
from fabric.contracts.errors import Cancelled, DeadlineExceeded, EngineError, ErrorInfo, FabricError
from fabric.contracts.job import JobState, Measures, Usage
from fabric.store.transitions import Claimed, Failure, Outcome, Piece
from workers.engines.engine import Answer, Engine, Request
from workers.outbox import Outbox
from workers.retries import dispose
from workers.slots import Gate

log = logging.getLogger(__name__)

_TOKEN = b'{"type":"token","chunk":'

#: Why a running job is stopped -> the outcome it gets. ``lost`` gets none: it is someone else's now.
_STOPS: dict[str, tuple[JobState, ErrorInfo]] = {
    "cancelled": (JobState.CANCELLED, Cancelled("The job was cancelled.").info),
    "expired": (
        JobState.EXPIRED,
        DeadlineExceeded("The deadline passed before the job was finished.").info,
    ),
}


class Runner:
    """All in-flight jobs of one worker. Everything but ``held`` is called on the loop's thread."""

    def __init__(self, engines: dict[str, Engine], outbox: Outbox, done: Callable[[str], None]) -> None:
        """``done`` is called with the deployment's name whenever one of its jobs is over."""
        self._engines = engines
        self._gates = {name: Gate(engine.slots) for name, engine in engines.items()}
        self._outbox = outbox
        self._done = done
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stopped: dict[str, str] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def held(self) -> list[str]:
        return list(self._tasks)

    def begin(self, deployment: str, jobs: Iterable[Claimed]) -> None:
        for job in jobs:
            if job.spec.id in self._tasks:  # the same message came twice
                self._done(deployment)
                continue
            task = asyncio.create_task(self._run(deployment, job), name=job.spec.id)
            self._tasks[job.spec.id] = task
            self._idle.clear()
            task.add_done_callback(partial(self._over, job.spec.id, deployment))

    def stop(self, job_id: str, why: str) -> None:
        """Stops a job in its engine. ``why``: ``cancelled``, ``expired`` or ``lost``."""
        task = self._tasks.get(job_id)
        if task is not None and job_id not in self._stopped:
            self._stopped[job_id] = why
            task.cancel()

    async def drained(self, grace_s: float) -> None:
        """Waits for the jobs in flight, then stops those that are left without an outcome."""
        try:
            await asyncio.wait_for(self._idle.wait(), grace_s)
        except TimeoutError:
            for job_id in self.held:
                self.stop(job_id, "lost")
            await self._idle.wait()

    def _over(self, job_id: str, deployment: str, task: asyncio.Task[None]) -> None:
        del self._tasks[job_id]
        self._stopped.pop(job_id, None)
        if not self._tasks:
            self._idle.set()
        self._done(deployment)

    async def _run(self, deployment: str, job: Claimed) -> None:
        started = time.perf_counter()
        try:
            async with self._gates[deployment].slot(job.spec.priority):
                started = time.perf_counter()
                answer = await self._answer(self._engines[deployment], job)
            self._succeeded(deployment, job, answer, time.perf_counter() - started)
        except asyncio.CancelledError:
            stop = _STOPS.get(self._stopped.get(job.spec.id, "lost"))
            if stop is not None:
                state, error = stop
                self._end(job, state, error, time.perf_counter() - started)
        except FabricError as error:
            self._failed(job, error.info, time.perf_counter() - started)
        except Exception as error:  # noqa: BLE001 - an engine's bug must not take the worker's other jobs along
            # The text of an unforeseen error may quote the prompt: only its kind is told.
            kind = type(error).__name__
            log.error("job %s: the engine of %s raised %s%s", job.spec.id, deployment, kind, _where(error))
            unforeseen = EngineError(f"The engine failed in an unforeseen way ({kind}).")
            self._failed(job, unforeseen.info, time.perf_counter() - started)

    async def _answer(self, engine: Engine, job: Claimed) -> Answer:
        payload = orjson.loads(job.payload)
        request = Request(job.spec.id, job.spec.endpoint, payload["body"], job.spec.stream)

        def emit(chunk: bytes) -> None:
            self._outbox.piece(Piece(job.spec.id, job.attempt, _TOKEN + chunk + b"}"))

        if job.spec.deadline_ms is None:
            return await engine.run(request, emit)
        try:
            async with asyncio.timeout(max(0.0, job.spec.deadline_ms / 1000 - time.time())):
                return await engine.run(request, emit)
        except TimeoutError:
            raise DeadlineExceeded("The deadline passed before the job was finished.") from None

    def _succeeded(self, deployment: str, job: Claimed, answer: Answer, engine_s: float) -> None:
        settings = self._engines[deployment].deployment
        measures = Measures(
            engine_s=engine_s,
            first_token_s=answer.first_token_s,
            usage=answer.usage,
            cost_usd=cost_usd(answer.usage, settings.price),
            served_model=settings.model,
        )
        self._outbox.outcome(
            Outcome(
                job.spec.id,
                job.attempt,
                JobState.SUCCEEDED,
                orjson.dumps(answer.body) if answer.body else b"",
                measures=measures.dump(),
            )
        )

    def _failed(self, job: Claimed, error: ErrorInfo, engine_s: float) -> None:
        if error.code == DeadlineExceeded.code:
            self._end(job, JobState.EXPIRED, error, engine_s)
            return
        disposition = dispose(error, job.attempt)
        if disposition.action == "retry":
            self._outbox.failure(Failure(job.spec.id, job.attempt, disposition.delay_ms, error))
        else:
            state = JobState.DEAD if disposition.action == "park" else JobState.FAILED
            self._end(job, state, error, engine_s)

    def _end(self, job: Claimed, state: JobState, error: ErrorInfo, engine_s: float) -> None:
        measures = Measures(engine_s=engine_s).dump()
        self._outbox.outcome(Outcome(job.spec.id, job.attempt, state, error=error, measures=measures))


def cost_usd(usage: Usage, price: Price) -> float:
    """US dollars for what was used; cached input at its own price where there is one."""
    cached_price = price.input_per_million if price.cached_input_per_million is None else price.cached_input_per_million
    return (
        (usage.input_tokens - usage.cached_input_tokens) * price.input_per_million
        + usage.cached_input_tokens * cached_price
        + usage.output_tokens * price.output_per_million
    ) / 1e6


def _where(error: Exception) -> str:
    """File and line of the innermost frame: enough to look, nothing of the values."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f" at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else ""
