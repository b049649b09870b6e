"""Whether the disk has room for new work. Looked at once a second, so that a request costs no call to the system."""

from __future__ import annotations

import asyncio
import logging

from fabric.store.disk import Disk

log = logging.getLogger(__name__)

_LOOK_S = 1.0


class Room:
    """``disk``: ``None`` where the store's disk is another machine's."""

    def __init__(self, disk: Disk | None, *, look_s: float = _LOOK_S) -> None:
        self._disk = disk
        self._look_s = look_s
        self._low = False

    async def run(self) -> None:
        """Looks until it is cancelled."""
        while self._disk is not None:
            low = await asyncio.to_thread(self._disk.is_low)
            if low and not self._low:
                log.error("new work is refused: %s", self._disk.refusal().message)
            elif self._low and not low:
                log.info("the disk has room: new work is taken again")
            self._low = low
            await asyncio.sleep(self._look_s)

    def check(self) -> None:
        """
        Raises:
            Unavailable: it has none.
        """
        if self._low and self._disk is not None:
            raise self._disk.refusal()
