"""What many viewers look at is asked for once in a while, not once a viewer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Asked:
    began_s: float
    answer: asyncio.Task[Any]


class Once:
    """Answers from memory what was asked for less than ``age_s`` ago; an answer that failed isn't kept."""

    def __init__(self, age_s: float) -> None:
        self.age_s = age_s
        self._asked: dict[Hashable, _Asked] = {}

    async def get(self, key: Hashable, ask: Callable[[], Awaitable[T]]) -> T:
        now_s = time.monotonic()
        known = self._asked.get(key)
        if known is None or now_s - known.began_s >= self.age_s or _failed(known.answer):
            self._forget(now_s)
            known = self._asked[key] = _Asked(now_s, asyncio.ensure_future(_awaited(ask)))
        # A viewer who leaves doesn't take the answer from the others.
        answer: T = await asyncio.shield(known.answer)
        return answer

    def _forget(self, now_s: float) -> None:
        old = [key for key, asked in self._asked.items() if now_s - asked.began_s >= self.age_s and asked.answer.done()]
        for key in old:
            del self._asked[key]


async def _awaited(ask: Callable[[], Awaitable[T]]) -> T:
    return await ask()


def _failed(answer: asyncio.Task[Any]) -> bool:
    return answer.done() and (answer.cancelled() or answer.exception() is not None)
