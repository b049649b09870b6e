"""The catalogue that this gateway works under: kept by its hash in the store, and changed when the file changes."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fabric.contracts.catalog import Catalog
from fabric.contracts.errors import Unavailable
from fabric.routing import policy_hash, policy_text
from fabric.settings.watch import Watch
from fabric.store import policies

if TYPE_CHECKING:
    from fabric.gateway.gateway import Gateway

log = logging.getLogger(__name__)

_LOOK_S = 1.0


class Configuration:
    def __init__(self, gateway: Gateway, watch: Watch | None) -> None:
        self._gateway = gateway
        self._watch = watch
        self._kept: str | None = None
        self._waiting: Catalog | None = None
        self._counted = 0
        self.since_s = int(time.time())
        gateway.metrics.config_info.labels(gateway.policy_hash).set(1)

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            try:
                await self.look()
            except Unavailable:
                pass  # the text is kept before anything is accepted under it: later
            await asyncio.sleep(_LOOK_S)

    async def look(self) -> None:
        """
        Raises:
            Unavailable: the store is away; what was found is not in force yet.
        """
        if self._watch is not None:
            self._waiting = await asyncio.to_thread(self._watch.look) or self._waiting
            self._gateway.metrics.config_failures.inc(self._watch.failures - self._counted)
            self._counted = self._watch.failures
        if self._waiting is not None:
            await self._keep(self._waiting)
            self._adopt(self._waiting)
            self._waiting = None
        elif self._kept is None:
            await self._keep(self._gateway.catalog)

    async def _keep(self, catalog: Catalog) -> None:
        hash_ = policy_hash(catalog)
        await self._gateway.ask(policies.keep(hash_, policy_text(catalog)))
        self._kept = hash_

    def _adopt(self, catalog: Catalog) -> None:
        info = self._gateway.metrics.config_info
        info.remove(self._gateway.policy_hash)
        self._gateway.adopt(catalog)
        self.since_s = int(time.time())
        info.labels(self._gateway.policy_hash).set(1)
        log.info("the configuration file has changed: rules %s", self._gateway.policy_hash)

    def shown(self) -> dict[str, Any]:
        """For who looks after the fabric. ``problem``: what is wrong with the file, so that it doesn't count."""
        problem = self._watch.problem if self._watch else None
        return {
            "policy_hash": self._gateway.policy_hash,
            "since": self.since_s,
            "problem": problem and _without_folder(problem),
        }


def _without_folder(problem: str) -> str:
    place, colon, rest = problem.partition(":")
    return f"{Path(place).name}{colon}{rest}"
