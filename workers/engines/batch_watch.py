"""One group at a provider, from making its batch to bringing the answers home."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from fabric.contracts.batch_api import BatchApi
from fabric.contracts.errors import (
    EngineRejected,
    FabricError,
    ProviderError,
    ProviderMisconfigured,
    ProviderUnavailable,
    RateLimited,
    Unavailable,
)
from fabric.contracts.job import Usage
from workers.engines.engine import Answer
from workers.engines.openai_wire import estimated_usage
from workers.engines.provider_batch import Batches, Group, Look, Register, Result, Waiting, pauses

log = logging.getLogger(__name__)

T = TypeVar("T")

#: How long a batch may take to show up at the provider, of which it isn't known whether it was made. Only then is
#: it made again.
_SETTLE_S = 60.0
_TOO_LARGE = "request_too_large"
#: Refusals of the key or the address in a row, after which nobody waits any longer.
_HOPELESS = 3
#: Whole result files that end in the middle of a line, or that have no line for a job.
_READS = 3
#: Failed requests that are written off together, and late results that are told together.
_TOGETHER = 256


class Desk(Protocol):
    """What a watch needs of the engine."""

    async def send(self, pack: Sequence[Waiting]) -> None:
        """They go into a new group."""

    async def drop(self, job_ids: Sequence[str]) -> None:
        """Their requests ended without an answer."""

    async def spent(self, group: Group, used: Sequence[tuple[str, Usage]]) -> None:
        """The provider answered requests that nobody waits for any more."""


class Watch:
    """``makes``: the requests of a batch that is to be made; empty for one that another worker has begun."""

    #: Whether the provider may be about to make the batch.
    making: bool

    def __init__(
        self,
        group: Group,
        makes: Sequence[Waiting],
        provider: Batches,
        register: Register,
        desk: Desk,
        settings: BatchApi,
        *,
        settle_s: float = _SETTLE_S,
    ) -> None:
        self.group = group
        self.waiting: dict[str, Waiting] = {one.job_id: one for one in makes}
        self.making = bool(makes)
        self._makes = makes
        self._order = [one.job_id for one in makes]
        self._provider = provider
        self._register = register
        self._desk = desk
        self._settings = settings
        self._settle_s = settle_s
        self._strangers: set[str] = set()  #: batches that turned out to be somebody else's
        self._guessed = False  #: whether the batch is only likely to be this group's
        self._changed = asyncio.Event()
        self.over = asyncio.Event()

    def join(self, waiting: Sequence[Waiting]) -> None:
        self.waiting |= {one.job_id: one for one in waiting}
        self._changed.set()

    def leave(self, job_id: str) -> None:
        if self.waiting.pop(job_id, None) is not None and not self.waiting:
            self._changed.set()

    async def run(self) -> None:
        """Until nobody waits here any more."""
        try:
            while self.waiting:
                if self.group.provider_id is None and not await self._have_a_batch():
                    return
                look = await self._ended()
                if look is None:
                    return
                if look.refusal is not None:
                    await self._refused(look, look.refusal)
                    return
                await self._bring_home(look)
        except FabricError as error:
            await self.fail(_of_all(error))
        finally:
            self.over.set()

    async def fail(self, error: FabricError, job_ids: Sequence[str] | None = None) -> None:
        """They end with the error, and their next try begins anew. Without ``job_ids``: all."""
        await self._fail_each([(job_id, error) for job_id in (self.waiting if job_ids is None else job_ids)])

    async def _fail_each(self, failed: Sequence[tuple[str, FabricError]]) -> None:
        await self._desk.drop([job_id for job_id, _ in failed])
        for job_id, error in failed:
            if (one := self.waiting.pop(job_id, None)) is not None and not one.future.done():
                one.future.set_exception(error)

    # Making it.

    async def _have_a_batch(self) -> bool:
        """Whether there is one now; else those who waited go elsewhere, or are gone."""
        if not self._makes:
            # Begun by another worker, which may have died before it was told how that ended.
            return await self._look_for_it() or await self._make_anew()
        makes, self._makes = [one for one in self._makes if one.job_id in self.waiting], ()
        self._order = [one.job_id for one in makes]
        if len(makes) != self.group.size:
            self.group = replace(self.group, size=len(makes))
            await self._insist(lambda: self._register.name(self.group))
        try:
            prepared = await self._patiently(lambda: self._provider.prepare(self.group, [one.line for one in makes]))
            return prepared is not None and await self._made(prepared)
        except EngineRejected as error:
            if error.error_code == _TOO_LARGE and len(makes) > 1:
                await self._halve()
                return False
            raise
        finally:
            self.making = False

    async def _made(self, prepared: bytes) -> bool:
        while self.waiting:
            try:
                provider_id = await self._provider.create(self.group, prepared)
            except RateLimited as error:
                await self._pause(error.retry_after_s or self._settings.poll_s)
            except ProviderUnavailable:
                await self._pause(self._settings.poll_s)  # no connection: nothing was made
            except FabricError as error:
                if not error.retry:
                    raise
                # It may have been made all the same.
                if await self._look_for_it():
                    return True
            else:
                await self._named(provider_id)
                return True
        return False

    async def _halve(self) -> None:
        """The provider takes less at once than ``max_bytes``."""
        both = [*self.waiting.values()]
        self.waiting.clear()
        log.warning("%s is too large for the provider and goes in halves: lower `max_bytes`", self.group.id)
        await self._desk.drop([one.job_id for one in both])
        middle = (len(both) + 1) // 2
        for half in (both[:middle], both[middle:]):
            if half:
                await self._desk.send(half)

    async def _look_for_it(self) -> bool:
        until = self.group.begun_ms / 1000 + self._settle_s
        for pause_s in pauses(min(self._settings.poll_s, self._settle_s / 4)):
            found = await self._patiently(lambda: self._provider.find(self.group, self._strangers))
            if found is not None and self._provider.certain:
                await self._named(found)
                return True
            if found is not None:
                # Written down once its results prove it.
                self._guessed = True
                self.group = self.group.named(found)
                return True
            if time.time() >= until or not self.waiting:
                return False
            await self._pause(min(pause_s, max(0.01, until - time.time())))
        raise AssertionError("pauses never end")

    async def _make_anew(self) -> bool:
        """The batch was never made: whoever waits here goes into another one."""
        anew = [*self.waiting.values()]
        self.waiting.clear()
        if anew:
            log.info("%s was never made: its %d jobs here go into another batch", self.group.id, len(anew))
            await self._desk.send(anew)
        return False

    async def _named(self, provider_id: str) -> None:
        self._guessed = False
        self.group = self.group.named(provider_id)
        log.info("batch %s has %d requests", provider_id, self.group.size)
        await self._insist(lambda: self._register.name(self.group))

    # Looking at it.

    async def _ended(self) -> Look | None:
        """What it ended as; nothing when nobody waits any more."""
        provider_id = self.group.provider_id
        assert provider_id is not None
        hopeless = 0
        for pause_s in pauses(self._settings.poll_s):
            if not self.waiting:
                return None
            try:
                look = await self._provider.look(provider_id)
            except FabricError as error:
                hopeless = 0 if error.retry else hopeless + 1
                if hopeless == 1 or error.retry:
                    log.warning("batch %s can't be looked at: %s", provider_id, error.message)
                if hopeless >= _HOPELESS:
                    raise
            else:
                hopeless = 0
                if look.ended:
                    return look
            await self._pause(pause_s)
        raise AssertionError("pauses never end")

    async def _refused(self, look: Look, refusal: FabricError) -> None:
        """Nothing of it ran. Where single requests are to blame the others are sent again without them."""
        bad = {self._order[n]: error for n, error in look.refused.items() if n < len(self._order)}
        if not bad:
            await self.fail(refusal)
            return
        await self._fail_each([(job_id, error) for job_id, error in bad.items() if job_id in self.waiting])
        good = [*self.waiting.values()]
        self.waiting.clear()
        if good:
            await self._desk.drop([one.job_id for one in good])
            await self._desk.send(good)

    # Bringing it home.

    async def _bring_home(self, look: Look) -> None:
        """Reads the results until everybody who waits has one. Who comes late is in the next reading."""
        reads = 0
        for pause_s in pauses(self._settings.poll_s):
            asked = [*self.waiting]
            lines, ours = 0, 0
            try:
                async for known in self._read(look):
                    lines += 1
                    ours += known
            except FabricError as error:
                if not error.retry:
                    raise
                log.warning("the results of %s can't be read to their end: %s", self.group.provider_id, error.message)
                whole = False
            else:
                whole = True
            reads += lines > 0 or whole
            left = [job_id for job_id in asked if job_id in self.waiting]
            if not left:
                return
            if self._guessed and ours:
                await self._named(str(self.group.provider_id))
            elif self._guessed and whole:
                log.warning("%s is somebody else's batch", self.group.provider_id)
                self._strangers.add(str(self.group.provider_id))
                self.group = self.group.named(None)
                return
            if whole or reads >= _READS:
                await self.fail(look.missing or ProviderError("The provider brought no result for the request."), left)
                return
            await self._pause(pause_s)
            if not self.waiting:
                return

    async def _read(self, look: Look) -> AsyncIterator[bool]:
        """Gives every waiting job its result as the lines come; yields whether a line was of this group."""
        failed: list[tuple[str, FabricError]] = []
        late: list[tuple[str, Usage]] = []
        try:
            async for result in self._provider.results(self.group, look):
                one = self.waiting.get(result.custom_id)
                if one is None:
                    if isinstance(result.outcome, Answer):
                        late.append((result.custom_id, result.outcome.usage))
                    yield result.custom_id in self._order
                else:
                    if isinstance(result.outcome, Answer):
                        self._answered(one, result)
                    else:
                        failed.append((result.custom_id, result.outcome))
                    yield True
                if len(failed) + len(late) >= _TOGETHER:
                    await self._tell(failed, late)
        finally:
            await self._tell(failed, late)

    def _answered(self, one: Waiting, result: Result) -> None:
        del self.waiting[one.job_id]
        if one.future.done() or not isinstance(result.outcome, Answer):
            return
        usage = result.outcome.usage
        if usage.estimated:
            usage = estimated_usage(one.request.body, usage.output_tokens)
        # Since the batch was begun, by whichever worker.
        seconds = max(0.0, time.time() - self.group.begun_ms / 1000)
        one.future.set_result(replace(result.outcome, usage=usage, engine_s=seconds))

    async def _tell(self, failed: list[tuple[str, FabricError]], late: list[tuple[str, Usage]]) -> None:
        if failed:
            await self._fail_each(failed)
            failed.clear()
        if late:
            await self._desk.spent(self.group, late)
            late.clear()

    # Patience.

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T | None:
        """Asks until there is an answer; nothing when nobody waits any more.

        Raises:
            FabricError: one that no further try can mend.
        """
        for pause_s in pauses(self._settings.poll_s):
            if not self.waiting:
                return None
            try:
                return await ask()
            except FabricError as error:
                if not error.retry:
                    raise
                log.warning("%s waits: %s", self.group.id, error.message)
                await self._pause(error.retry_after_s or pause_s)
        raise AssertionError("pauses never end")

    async def _pause(self, seconds: float) -> None:
        """Not longer than somebody waits; who joins is heard when it is over."""
        until = asyncio.get_running_loop().time() + seconds
        while self.waiting:
            self._changed.clear()
            try:
                async with asyncio.timeout_at(until):
                    await self._changed.wait()
            except TimeoutError:
                return

    async def _insist(self, ask: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await ask()
            except Unavailable:
                await asyncio.sleep(0.2)


def _of_all(error: FabricError) -> FabricError:
    """What a whole batch is refused for can't be pinned on any of its requests: each is tried elsewhere."""
    if isinstance(error, EngineRejected) or not error.fall_back:
        return ProviderMisconfigured(f"The batch was refused. {error.message}")
    return error
