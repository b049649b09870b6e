"""Whether the broker is away, as the schedulers say. Read twice a second, so that a request costs no call."""

from __future__ import annotations

import asyncio
import logging

from fabric.contracts.errors import Unavailable
from fabric.store import AsyncStore, broker_state

log = logging.getLogger(__name__)

_LOOK_S = 0.5


class Broker:
    def __init__(self, store: AsyncStore) -> None:
        self._store = store
        self.away = False

    async def run(self) -> None:
        """Looks until it is cancelled. While the store is away, what was found last counts."""
        while True:
            try:
                await self.look()
            except Unavailable:
                pass
            await asyncio.sleep(_LOOK_S)

    async def look(self) -> None:
        """Raises ``Unavailable``: the store is away."""
        away = await self._store(broker_state.is_away())
        if away and not self.away:
            log.error("new work is refused: the broker is away")
        elif self.away and not away:
            log.info("the broker is back: new work is taken again")
        self.away = away

    def check(self) -> None:
        """
        Raises:
            Unavailable: it is away.
        """
        if self.away:
            raise broker_state.refusal()
