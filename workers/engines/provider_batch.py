"""Batches at a provider, whatever its protocol: the values, and the two ports of ``batch_engine``. Pure.

A *group* is what this fabric sends as one batch. It has a name of ours before the provider has given it one, so
that a batch of which it isn't known whether it was made can be looked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import orjson

from fabric.contracts.errors import FabricError
from fabric.contracts.job import Endpoint, Measures
from workers.engines.engine import Answer, Request

#: Pauses between looks grow by this, up to so many times the first one.
_GROWTH = 1.5
_GROWN = 5.0


@dataclass(frozen=True, slots=True)
class Group:
    """``begun_ms``: milliseconds since the epoch, from before the provider was asked. ``size``: requests in it."""

    id: str
    endpoint: Endpoint
    size: int
    begun_ms: int
    provider_id: str | None = None  #: once the provider has said so

    def named(self, provider_id: str | None) -> Group:
        return replace(self, provider_id=provider_id)

    def dump(self) -> bytes:
        return orjson.dumps(self)

    @classmethod
    def load(cls, data: bytes | str) -> Group:
        return cls(**orjson.loads(data))


@dataclass(frozen=True, slots=True)
class Look:
    """What the provider says of a batch. ``files``: where its results are, in the provider's terms, once it ended."""

    ended: bool
    files: tuple[str, ...] = ()
    #: The batch was refused as a whole: nothing of it ran.
    refusal: FabricError | None = None
    #: Number of a request, from 0, that it was refused for -> what is wrong with it.
    refused: Mapping[int, FabricError] = field(default_factory=dict)
    #: What requests end with that the results don't have.
    missing: FabricError | None = None
    input_file: str | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """One line of a result file."""

    custom_id: str
    outcome: Answer | FabricError


class Batches(Protocol):
    """One provider's batch API. All but ``line`` ask the provider, and raise what ``Api.send`` raises."""

    def open(self) -> None:
        """Reads the key.

        Raises:
            ConfigError: there is none.
        """

    def line(self, request: Request) -> bytes:
        """The request as it is sent: one line, one JSON object.

        Raises:
            EngineUnsupported: the API can't do what a field asks for.
        """

    async def prepare(self, group: Group, lines: Sequence[bytes]) -> bytes:
        """Uploads them; answers what ``create`` needs. Doing it again costs an upload, nothing else."""

    async def create(self, group: Group, prepared: bytes) -> str:
        """Makes the batch: from here on it is paid for. Answers the provider's id."""

    async def find(self, group: Group, not_these: Collection[Any]) -> str | None:
        """A batch that is this group's, or may be as far as can be told from outside (``certain``)."""

    @property
    def certain(self) -> bool:
        """Whether what ``find`` answers is the group's for sure."""

    async def look(self, provider_id: str) -> Look: ...

    def results(self, group: Group, look: Look) -> AsyncIterator[Result]:
        """Line by line. Raises at the end what broke it off."""

    async def cancel(self, provider_id: str) -> None: ...

    async def clear(self, look: Look) -> None:
        """Deletes the files of a batch that nobody needs any more."""

    async def close(self) -> None: ...


class Register(Protocol):
    """Which job is in which group, kept where it outlives this process. All raise ``Unavailable``."""

    async def find(self, job_ids: Sequence[str]) -> dict[str, Group]: ...

    async def enlist(self, group: Group, job_ids: Sequence[str]) -> None: ...

    async def name(self, group: Group) -> None:
        """The group has got its ``provider_id``."""

    async def release(self, job_ids: Sequence[str], *, withdrawn: bool = False, answered: bool = False) -> list[Group]:
        """They wait no more; answers the groups in which nobody does now. Those stay until ``forget``.

        ``withdrawn``: while they are still running here, and the provider may yet answer them (``spent``).
        ``answered``: only those whose end is stored. An answer that was lost on its way is found again.
        """

    async def spent(self, group: Group, used: Sequence[tuple[str, Measures]]) -> None:
        """What answers cost that came for jobs which may have been withdrawn. Counts once, and only for those."""

    async def forget(self, group_id: str) -> None: ...

    async def sweep(self) -> list[Group]:
        """Looks for jobs that are gone although nobody released them; answers groups in which nobody waits."""


class LocalRegister:
    """For one process: what it knows ends with it."""

    def __init__(self) -> None:
        self._of: dict[str, str] = {}
        self._groups: dict[str, Group] = {}

    async def find(self, job_ids: Sequence[str]) -> dict[str, Group]:
        return {job_id: self._groups[self._of[job_id]] for job_id in job_ids if job_id in self._of}

    async def enlist(self, group: Group, job_ids: Sequence[str]) -> None:
        self._groups[group.id] = group
        self._of |= dict.fromkeys(job_ids, group.id)

    async def name(self, group: Group) -> None:
        self._groups[group.id] = group

    async def release(self, job_ids: Sequence[str], *, withdrawn: bool = False, answered: bool = False) -> list[Group]:
        left = {self._of.pop(job_id) for job_id in job_ids if job_id in self._of}
        return [self._groups[group] for group in left - set(self._of.values()) if group in self._groups]

    async def spent(self, group: Group, used: Sequence[tuple[str, Measures]]) -> None:
        """Nobody keeps accounts here."""

    async def forget(self, group_id: str) -> None:
        self._groups.pop(group_id, None)

    async def sweep(self) -> list[Group]:
        return []


@dataclass(slots=True, eq=False)
class Waiting:
    """One ``run`` that waits for its answer. ``since``: on the loop's clock."""

    request: Request
    line: bytes
    since: float
    future: asyncio.Future[Answer]

    @property
    def job_id(self) -> str:
        return self.request.job_id


def packs(waiting: Iterable[Waiting], max_requests: int, max_bytes: int) -> Iterator[list[Waiting]]:
    """Cuts them into batches: of one endpoint each, and none over the limits. A line that is too long goes alone."""
    by_endpoint: dict[Endpoint, list[Waiting]] = {}
    for one in waiting:
        by_endpoint.setdefault(one.request.endpoint, []).append(one)
    for several in by_endpoint.values():
        pack: list[Waiting] = []
        size = 0
        for one in several:
            length = len(one.line) + 1
            if pack and (len(pack) >= max_requests or size + length > max_bytes):
                yield pack
                pack, size = [], 0
            pack.append(one)
            size += length
        yield pack


def pauses(first_s: float) -> Iterator[float]:
    """Seconds between looks, for ever."""
    pause_s = first_s
    while True:
        yield pause_s
        pause_s = min(pause_s * _GROWTH, first_s * _GROWN)
