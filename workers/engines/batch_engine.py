"""The engine of a provider's batch API: thousands of jobs wait here, gathered into few batches.

A job's way: it waits for others (``gather_s``); who is in which group is written down; the group is made a batch
at the provider; a ``Watch`` looks at it until it ends and brings the answers home. A job that comes back after
its worker died or was restarted finds itself in the register and joins the watch: nothing is sent twice.

A job whose deadline comes near is pulled back, and so is one that is cancelled. When nobody waits for a group
any more its batch is called off.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from fabric.contracts.batch_api import BatchApi
from fabric.contracts.catalog import Deployment
from fabric.contracts.errors import EngineUnsupported, FabricError, ProviderBatchLate, Unavailable, where
from fabric.contracts.ids import new_id
from fabric.contracts.job import Measures, Usage
from fabric.pricing import token_usd
from workers.engines.batch_watch import Watch
from workers.engines.engine import Answer, Emit, Engine, Request
from workers.engines.provider_batch import Batches, Group, LocalRegister, Look, Register, Waiting, packs, pauses

log = logging.getLogger(__name__)

T = TypeVar("T")

#: How long after its answer a job is looked for in the register. If its end is stored by then it is let go; else it
#: stays: whoever gets the job again, here or elsewhere, finds the answer that was paid for.
_KEEP_S = 5.0
#: How often jobs are looked for that left without a word, and batches that nobody waits for.
_SWEEP_S = 60.0
_AWAY_S = 0.2
#: How long withdrawals wait for others, and for the store: after that they are found by a sweep.
_TOGETHER_S = 0.05
_WITHDRAW_S = 2.0
#: Late answers that are accounted for together.
_LATE = 256
#: Bytes of requests that are held; beyond it the engine has no more room than for what it has.
_HELD_BYTES = 512 * 1024 * 1024


class BatchEngine(Engine):
    """``register``: without one, what is at the provider is forgotten with this process."""

    def __init__(
        self,
        deployment: Deployment,
        provider: Batches,
        register: Register | None = None,
        *,
        keep_s: float = _KEEP_S,
        sweep_s: float = _SWEEP_S,
        settle_s: float | None = None,
    ) -> None:
        super().__init__(deployment)
        self._settings = deployment.batch_api or BatchApi()
        self._provider = provider
        self._register = register or LocalRegister()
        self._keep_s = keep_s
        self._sweep_s = sweep_s
        self._settle_s = settle_s
        self._waiting: dict[str, Waiting] = {}
        self._held_bytes = 0
        self._let_go: set[str] = set()
        #: What has come since the last batch was put together.
        self._gathered: dict[str, Waiting] = {}
        self._gathering: asyncio.Task[None] | None = None
        #: Jobs that have their answer, and when that is to be written down.
        self._leaving: dict[str, float] = {}
        #: Jobs that were written down for a batch and left before it was made.
        self._missed: set[str] = set()
        self._watches: dict[str, Watch] = {}
        self._closing: set[str] = set()
        self._withdrawing: set[str] = set()
        self._withdrawal: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def slots(self) -> int:
        slots = self.deployment.slots or self._settings.slots
        return slots if self._held_bytes < _HELD_BYTES else min(slots, len(self._waiting))

    @property
    def waits(self) -> bool:
        return True

    async def start(self) -> None:
        self._provider.open()
        self._begin(self._tidy())

    async def run(self, request: Request, emit: Emit) -> Answer:
        if request.stream:
            raise EngineUnsupported("A provider's batch API streams nothing.", param="stream")
        loop = asyncio.get_running_loop()
        waiting = Waiting(request, self._provider.line(request), loop.time(), loop.create_future())
        self._let_go.discard(request.job_id)
        self._waiting[request.job_id] = waiting
        self._held_bytes += len(waiting.line)
        self._gathered[request.job_id] = waiting
        if self._gathering is None:
            self._gathering = self._begin(self._gather())
        try:
            async with asyncio.timeout_at(self._pull_back_at(request)) as clock:
                return await waiting.future
        except asyncio.CancelledError:
            if request.job_id not in self._let_go:
                await self._withdraw(request.job_id)
            raise
        except TimeoutError:
            if not clock.expired():
                raise
            await self._withdraw(request.job_id)
            raise ProviderBatchLate(
                f"The batch of deployment {self.deployment.name!r} isn't done, and the deadline is near "
                f"(reserve_s: {self._settings.reserve_s:g} s)."
            ) from None
        finally:
            self._held_bytes -= len(waiting.line)
            if self._waiting.get(request.job_id) is waiting:
                self._left(waiting)

    def let_go(self, job_id: str) -> None:
        self._let_go.add(job_id)

    async def close(self) -> None:
        for task in [*self._tasks]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._provider.close()

    def _pull_back_at(self, request: Request) -> float | None:
        """On the loop's clock."""
        if request.deadline_ms is None:
            return None
        left_s = request.deadline_ms / 1000 - time.time() - self._settings.reserve_s
        return asyncio.get_running_loop().time() + left_s

    def _left(self, waiting: Waiting) -> None:
        """Its ``run`` is over, however it ended."""
        job_id = waiting.job_id
        del self._waiting[job_id]
        if self._gathered.get(job_id) is waiting:
            del self._gathered[job_id]
        self._leave_watches(job_id)
        if job_id in self._let_go:
            self._let_go.discard(job_id)  # another worker's: what is at the provider is its
            return
        if waiting.future.done() and not waiting.future.cancelled() and waiting.future.exception() is None:
            self._leaving[job_id] = asyncio.get_running_loop().time() + self._keep_s

    def _leave_watches(self, job_id: str) -> None:
        for watch in self._watches.values():
            watch.leave(job_id)

    async def _withdraw(self, job_id: str) -> None:
        """Before its ``run`` ends: as long as the job is this worker's it is known whose bill a late answer goes on.
        Many are written down together."""
        self._gathered.pop(job_id, None)
        self._leave_watches(job_id)
        if self._withdrawal is None or self._withdrawal.done():
            self._withdrawing = set()
            self._withdrawal = self._begin(self._written_off(self._withdrawing))
        self._withdrawing.add(job_id)
        await asyncio.wait([self._withdrawal], timeout=_WITHDRAW_S)

    async def _written_off(self, job_ids: set[str]) -> None:
        await asyncio.sleep(_TOGETHER_S)
        self._withdrawal = None
        await self._close_empty(await self._insist(lambda: self._register.release([*job_ids], withdrawn=True)))

    async def _gather(self) -> None:
        """Waits for company, then puts together what is there."""
        until = asyncio.get_running_loop().time() + self._settings.gather_s
        while len(self._gathered) < self._settings.max_requests and asyncio.get_running_loop().time() < until:
            size = sum(len(waiting.line) for waiting in self._gathered.values())
            if size >= self._settings.max_bytes:
                break
            await asyncio.sleep(min(0.25, max(0.0, until - asyncio.get_running_loop().time())))
        gathered, self._gathered, self._gathering = self._gathered, {}, None
        await self._settle_down([waiting for waiting in gathered.values() if not waiting.future.done()])

    async def _settle_down(self, waiting: Sequence[Waiting]) -> None:
        """Those that are at the provider already join their batch, the others get one."""
        # One that has just missed its batch and came again begins anew.
        await self._write_off_missed([*self._missed])
        known = await self._insist(lambda: self._register.find([one.job_id for one in waiting]))
        joining: dict[str, list[Waiting]] = {}
        for one in waiting:
            if one.job_id in known:
                joining.setdefault(known[one.job_id].id, []).append(one)
        for several in joining.values():
            group = known[several[0].job_id]
            log.info("%d jobs go on waiting for %s", len(several), group.provider_id or group.id)
            self._watch(group).join(several)
        fresh = [one for one in waiting if one.job_id not in known]
        for pack in packs(fresh, self._settings.max_requests, self._settings.max_bytes):
            await self.send(pack)

    async def send(self, pack: Sequence[Waiting]) -> None:
        """Makes a group of them, and a batch of it."""
        group = Group(new_id("batch"), pack[0].request.endpoint, len(pack), int(time.time() * 1000))
        await self._insist(lambda: self._register.enlist(group, [one.job_id for one in pack]))
        # Who left meanwhile isn't sent, and is written off again.
        here = [one for one in pack if self._waiting.get(one.job_id) is one]
        self._missed |= {one.job_id for one in pack if one.job_id not in self._waiting}
        if here:
            self._watch(group, here)

    def _watch(self, group: Group, makes: Sequence[Waiting] = ()) -> Watch:
        watch = self._watches.get(group.id)
        if watch is None:
            options = {} if self._settle_s is None else {"settle_s": self._settle_s}
            watch = Watch(group, makes, self._provider, self._register, self, self._settings, **options)
            self._watches[group.id] = watch
            self._begin(self._watched(watch))
        return watch

    async def _watched(self, watch: Watch) -> None:
        try:
            await watch.run()
        except Exception as error:  # noqa: BLE001 - a bug in one batch must not take the others along
            kind = type(error).__name__
            log.error("the watch of %s raised %s%s", watch.group.id, kind, where(error))
            await watch.fail(FabricError(f"The watch of a provider's batch failed in an unforeseen way ({kind})."))
        finally:
            del self._watches[watch.group.id]

    # What keeps the register true, and nothing running at the provider that nobody waits for.

    async def drop(self, job_ids: Sequence[str]) -> None:
        """Their requests ended without an answer: the next try begins anew."""
        await self._close_empty(await self._insist(lambda: self._register.release(job_ids)), keep=True)

    async def _write_off_missed(self, job_ids: Sequence[str]) -> None:
        if job_ids:
            self._missed -= {*job_ids}
            await self._close_empty(await self._insist(lambda: self._register.release(job_ids)))

    async def _let_answered_go(self, job_ids: Sequence[str]) -> None:
        if not job_ids:
            return
        for job_id in job_ids:
            self._leaving.pop(job_id, None)
        await self._close_empty(await self._insist(lambda: self._register.release(job_ids, answered=True)))

    async def _tidy(self) -> None:
        loop = asyncio.get_running_loop()
        sweep_at = loop.time()
        while True:
            await asyncio.sleep(min(1.0, self._keep_s, self._sweep_s))
            now = loop.time()
            due = [job_id for job_id, at in self._leaving.items() if at <= now and job_id not in self._waiting]
            await self._let_answered_go(due)
            await self._write_off_missed([job_id for job_id in self._missed if job_id not in self._waiting])
            if now >= sweep_at:
                sweep_at = now + self._sweep_s
                await self._close_empty(await self._insist(self._register.sweep))

    async def _close_empty(self, groups: Sequence[Group], *, keep: bool = False) -> None:
        for group in groups:
            watch = self._watches.get(group.id)
            if keep or group.id in self._closing or (watch is not None and watch.waiting):
                continue  # it is still being read: it is closed when the register says so again
            self._closing.add(group.id)
            self._begin(self._call_off(group, watch))

    async def _call_off(self, group: Group, watch: Watch | None) -> None:
        try:
            await self._called_off(group, watch)
        finally:
            self._closing.discard(group.id)

    async def _called_off(self, group: Group, watch: Watch | None) -> None:
        """Nobody waits for it any more: what still runs is cancelled, what is left of it is deleted."""
        if watch is not None:
            await watch.over.wait()  # it may just be making the batch
            group = watch.group
        if group.provider_id is None and self._provider.certain:
            found = await self._asked(lambda: self._provider.find(group, ()))
            group = group.named(found or None)
        if group.provider_id is not None and not await self._cleared(group, group.provider_id):
            return  # the next sweep finds it again
        await self._insist(lambda: self._register.forget(group.id))

    async def _cleared(self, group: Group, provider_id: str) -> bool:
        """Cancelled if it still runs, its late answers accounted for, its files deleted."""
        cancelled, look = False, None
        for pause_s in pauses(self._settings.poll_s):
            look = await self._asked(lambda: self._provider.look(provider_id))
            if look is None:
                return False
            if look.ended:
                break
            if not cancelled:
                log.info("nobody waits for %s any more: it is cancelled", provider_id)
                await self._asked(lambda: self._provider.cancel(provider_id))
                cancelled = True
            await asyncio.sleep(pause_s)
        ended = look
        return ended is not None and await self._asked(lambda: self._emptied(group, ended)) is not None

    async def _emptied(self, group: Group, look: Look) -> bool:
        late: list[tuple[str, Usage]] = []
        async for result in self._provider.results(group, look):
            if isinstance(result.outcome, Answer):
                late.append((result.custom_id, result.outcome.usage))
            if len(late) >= _LATE:
                await self.spent(group, late)
                late = []
        await self.spent(group, late)
        await self._provider.clear(look)
        return True

    async def spent(self, group: Group, used: Sequence[tuple[str, Usage]]) -> None:
        """What the provider answered for jobs that wait no more: those that were withdrawn pay for it."""
        price = self.deployment.price
        measured = [
            (
                job_id,
                Measures(
                    usage=usage,
                    cost_usd=token_usd(price, usage.input_tokens, usage.output_tokens, usage.cached_input_tokens),
                    price_version=price.version,
                    served_model=self.deployment.model,
                ),
            )
            for job_id, usage in used
            if job_id not in self._waiting
        ]
        if measured:
            await self._insist(lambda: self._register.spent(group, measured))

    async def _asked(self, ask: Callable[[], Awaitable[T]]) -> T | None:
        """What the provider answers; nothing where it doesn't."""
        try:
            return await ask()
        except FabricError as error:
            log.warning("a provider's batch can't be cleared away: %s", error.message)
            return None

    async def _insist(self, ask: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await ask()
            except Unavailable:
                await asyncio.sleep(_AWAY_S)

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._over)
        return task

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a duty of provider batches raised %s%s", type(error).__name__, where(error))
