"""The way in: one store call accepts every job that arrived while the last call was on its way.

No timer: alone, a job goes at once; under load the calls grow by themselves.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime

from fabric.contracts.budget import Charge
from fabric.contracts.errors import BudgetExceeded, BudgetUsedUp, Busy, Conflict, FabricError, Unavailable
from fabric.gateway.metrics import Metrics
from fabric.gateway.rate_headers import Throttled
from fabric.store import AsyncStore, transitions
from fabric.store.transitions import Accepted, NewJob

#: Bounds of one call: Redis serves nobody else while it runs.
_CALL_JOBS = 128
_CALL_BYTES = 8_000_000


class Intake:
    def __init__(
        self,
        store: AsyncStore,
        metrics: Metrics,
        sealed: Callable[[NewJob], NewJob],
        *,
        live_limit: int,
        timeout_s: float,
    ) -> None:
        self._store = store
        self._sealed = sealed
        self._metrics = metrics
        self._live_limit = live_limit
        self._timeout_s = timeout_s
        self._waiting: deque[tuple[NewJob, asyncio.Future[Accepted]]] = deque()
        self._sender: asyncio.Task[None] | None = None

    async def accept(self, job: NewJob) -> Accepted:
        """``job_id`` of the answer: under which the job is known, an earlier one for a repeated idempotency key.

        Raises:
            Busy: too many jobs are open.
            BudgetExceeded: it could go beyond a budget.
            Throttled: a rate limit of its key or tenant is reached.
            Conflict: the idempotency key was used for another request.
            Unavailable: the store is away. The job may have been accepted or not.
        """
        future: asyncio.Future[Accepted] = asyncio.get_running_loop().create_future()
        self._waiting.append((self._sealed(job), future))
        if self._sender is None:
            self._sender = asyncio.create_task(self._send())
        accepted = await future
        if accepted.verdict == "full":
            raise Busy("Too many jobs are waiting. Try again a little later.", retry_after_s=5)
        if accepted.verdict == "conflict":
            raise Conflict(
                "This Idempotency-Key was used for another request. Use a new key for a new request.",
                code="idempotency_conflict",
            )
        if accepted.limited_by is not None:
            raise Throttled(accepted.limited_by, accepted.levels)
        if accepted.verdict in ("over", "unready"):
            raise _beyond(accepted, job.charges)
        return accepted

    async def _send(self) -> None:
        try:
            while self._waiting:
                await self._call(self._next_call())
        finally:
            self._sender = None

    def _next_call(self) -> list[tuple[NewJob, asyncio.Future[Accepted]]]:
        call = [self._waiting.popleft()]
        size = len(call[0][0].payload)
        while self._waiting and len(call) < _CALL_JOBS:
            size += len(self._waiting[0][0].payload)
            if size > _CALL_BYTES:
                break
            call.append(self._waiting.popleft())
        return call

    async def _call(self, call: list[tuple[NewJob, asyncio.Future[Accepted]]]) -> None:
        command = transitions.accept((job for job, _ in call), limit=self._live_limit)
        failure: FabricError
        try:
            with self._metrics.accept_seconds.time():
                async with asyncio.timeout(self._timeout_s):
                    answers = await self._store(command)
        except TimeoutError:
            failure = Unavailable("The job store (Redis) doesn't answer; it is tried again.", retry_after_s=1)
        except FabricError as error:
            failure = error
        else:
            for (_, future), answer in zip(call, answers, strict=True):
                if not future.done():
                    future.set_result(answer)
            return
        for _, future in call:
            if not future.done():
                future.set_exception(failure)


def _beyond(answer: Accepted, charges: str) -> FabricError:
    if answer.verdict == "unready":
        return Unavailable(f"The budget {answer.budget} is being counted; try again.", retry_after_s=1)
    said = f"This request could cost more than is left of the budget {answer.budget}"
    less = "A smaller `max_tokens` or `fabric.max_cost_usd` reserves less"
    refused: BudgetExceeded
    if not answer.budget_end_ms:
        refused = BudgetUsedUp(f"{said}. {less}; the operator can raise the budget.")
        refused.of = _whose(answer.budget, charges)
        return refused
    end = datetime.fromtimestamp(answer.budget_end_ms / 1000, UTC)
    left_s = max(1.0, answer.budget_end_ms / 1000 - time.time())
    refused = BudgetExceeded(f"{said}, which begins again at {end:%Y-%m-%d %H:%M} UTC. {less}.", retry_after_s=left_s)
    refused.of = _whose(answer.budget, charges)
    return refused


def _whose(budget: str, charges: str) -> tuple[str, str]:
    charge = next(charge for charge in map(Charge.parse, charges.splitlines()) if charge.name == budget)
    return charge.scope, charge.unit
