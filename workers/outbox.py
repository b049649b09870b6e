"""What leaves a worker: pieces of streams and outcomes, in order, many in a call.

While one call is on its way the next ones collect, so calls grow with the load and a lone answer
waits for nothing. A store that is away is tried again until it is back: an outcome that comes too
late is refused by its attempt number.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import TypeVar

from fabric.contracts.breaker import dump
from fabric.contracts.errors import Unavailable
from fabric.store import AsyncStore, Command, transitions
from fabric.store.transitions import Failure, Outcome, Piece

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Ends in one call. More make fewer calls, and each holds up the store for longer.
_CALL_LIMIT = 64
_AWAY_S = 0.1
#: The defaults.
NO_RULES = dump(())


class Outbox:
    """``lost`` is called with the id and number of an attempt that is no longer this worker's. ``breakers``: the rules
    of its deployments (``fabric.contracts.breaker.dump``)."""

    def __init__(self, store: AsyncStore, lost: Callable[[str, int], None], breakers: bytes = NO_RULES) -> None:
        self._store = store
        self._breakers = breakers
        self._lost = lost
        self._pieces: list[Piece] = []
        self._outcomes: list[Outcome] = []
        self._failures: list[Failure] = []
        self._on_the_way: dict[str, int] = {}
        self._something = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    def piece(self, piece: Piece) -> None:
        self._pieces.append(piece)
        self._ring()

    def outcome(self, outcome: Outcome) -> None:
        self._outcomes.append(outcome)
        self._ring()

    def failure(self, failure: Failure) -> None:
        self._failures.append(failure)
        self._ring()

    def _ring(self) -> None:
        self._empty.clear()
        self._something.set()

    @property
    def pending(self) -> dict[str, int]:
        """Jobs whose end isn't stored yet, with the number of the attempt."""
        return self._on_the_way | _attempts(self._outcomes, self._failures)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._something.wait()
            self._something.clear()
            await self._flush()
            if not (self._pieces or self._outcomes or self._failures):
                self._empty.set()

    async def drained(self) -> None:
        """Returns when all that was put in has been stored."""
        await self._empty.wait()

    async def _flush(self) -> None:
        # Outcomes are picked up before pieces are sent: a job's pieces always come before its end.
        outcomes, self._outcomes = self._outcomes, []
        failures, self._failures = self._failures, []
        pieces, self._pieces = self._pieces, []
        self._on_the_way = _attempts(outcomes, failures)
        for start in range(0, len(pieces), _CALL_LIMIT):
            await self._emit(pieces[start : start + _CALL_LIMIT])
        for start in range(0, len(outcomes), _CALL_LIMIT):
            await self._commit(outcomes[start : start + _CALL_LIMIT])
        for start in range(0, len(failures), _CALL_LIMIT):
            await self._insist(transitions.fail(failures[start : start + _CALL_LIMIT], breakers=self._breakers))
        self._on_the_way = {}

    async def _emit(self, pieces: list[Piece]) -> None:
        kept = await self._insist(transitions.emit(pieces))
        unsettled = []
        for piece, answer in zip(pieces, kept, strict=True):
            if answer == transitions.UNSETTLED:
                unsettled.append(piece)
            elif not answer:
                self._lost(piece.job_id, piece.attempt)
        if unsettled:
            await self._settle(unsettled)

    async def _settle(self, pieces: list[Piece]) -> None:
        """First words of streams that are tried twice: only those of the one that speaks are kept."""
        attempts = {(piece.job_id, piece.attempt) for piece in pieces}
        speaking = {attempt for attempt in attempts if await self._insist(transitions.speak(*attempt))}
        if heard := [piece for piece in pieces if (piece.job_id, piece.attempt) in speaking]:
            await self._emit(heard)

    async def _commit(self, outcomes: list[Outcome]) -> None:
        counted = await self._insist(transitions.commit(outcomes, breakers=self._breakers))
        refused = counted.count(0)
        if refused:
            log.warning("%d late outcomes were refused: their jobs had moved on", refused)

    async def _insist(self, command: Command[T]) -> T:
        away = False
        while True:
            try:
                answer = await self._store(command)
            except Unavailable as error:
                if not away:
                    log.warning("outcomes wait: %s", error)
                away = True
                await asyncio.sleep(_AWAY_S)
            else:
                return answer


def _attempts(outcomes: Iterable[Outcome], failures: Iterable[Failure]) -> dict[str, int]:
    return {end.job_id: end.attempt for ends in (outcomes, failures) for end in ends}
