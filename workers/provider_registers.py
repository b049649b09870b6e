"""Which job is in which provider batch, kept in the store: it outlives the worker that sent it there."""

from __future__ import annotations

from collections.abc import Sequence

from fabric.contracts.catalog import Deployment
from fabric.contracts.errors import Unavailable
from fabric.contracts.job import Measures
from fabric.store import AsyncStore, provider_batches
from workers.engines.provider_batch import Group

#: Jobs of one call: it holds up the store while it runs.
_CALL = 500


class StoredRegister:
    """A ``Register`` of one deployment."""

    def __init__(self, deployment: str, registers: ProviderRegisters) -> None:
        self._deployment = deployment
        self._registers = registers
        self._cursor = 0

    async def find(self, job_ids: Sequence[str]) -> dict[str, Group]:
        found: dict[str, Group] = {}
        for some in _calls(job_ids):
            answers = await self._store(provider_batches.find(self._deployment, some))
            found |= {job_id: Group.load(known) for job_id, known in zip(some, answers, strict=True) if known}
        return found

    async def enlist(self, group: Group, job_ids: Sequence[str]) -> None:
        for some in _calls(job_ids):
            await self._store(provider_batches.enlist(self._deployment, group.id, group.dump(), some))

    async def name(self, group: Group) -> None:
        await self._store(provider_batches.enlist(self._deployment, group.id, group.dump(), ()))

    async def release(self, job_ids: Sequence[str], *, withdrawn: bool = False, answered: bool = False) -> list[Group]:
        empty: list[Group] = []
        for some in _calls(job_ids):
            answers = await self._store(
                provider_batches.release(self._deployment, some, withdrawn=withdrawn, answered=answered)
            )
            empty += map(Group.load, answers)
        return empty

    async def spent(self, group: Group, used: Sequence[tuple[str, Measures]]) -> None:
        await self._store(
            provider_batches.spent(self._deployment, group.id, [(job_id, used.dump()) for job_id, used in used])
        )

    async def forget(self, group_id: str) -> None:
        await self._store(provider_batches.forget(self._deployment, group_id))

    async def sweep(self) -> list[Group]:
        self._cursor, empty = await self._store(provider_batches.sweep(self._deployment, self._cursor))
        return [Group.load(known) for known in empty]

    @property
    def _store(self) -> AsyncStore:
        return self._registers.store


class ProviderRegisters:
    """Those of one worker, which opens its store when it starts."""

    def __init__(self) -> None:
        self._store: AsyncStore | None = None

    def open(self, store: AsyncStore) -> None:
        self._store = store

    def of(self, deployment: Deployment) -> StoredRegister:
        return StoredRegister(deployment.name, self)

    @property
    def store(self) -> AsyncStore:
        if self._store is None:
            raise Unavailable("The job store isn't open yet.")
        return self._store


def _calls(job_ids: Sequence[str]) -> list[Sequence[str]]:
    return [job_ids[start : start + _CALL] for start in range(0, len(job_ids), _CALL)]
