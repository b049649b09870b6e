"""Engines start side by side. One that isn't up in time comes later, and the others don't wait for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from fabric.contracts.errors import EngineUnavailable, FabricError
from workers.engines.engine import Engine

log = logging.getLogger(__name__)

#: How long a worker waits for all of its engines before it begins with those that are up. Longer finds more wrong
#: settings before the first job is taken, shorter lets small models work while a large one loads.
TOGETHER_S = 60.0
#: Waits before an engine that can't start now is tried again: doubled each time, up to the cap.
_AGAIN_S, _AGAIN_CAP_S = 1.0, 60.0


async def start_all(engines: Iterable[Engine]) -> set[asyncio.Task[None]]:
    """Answers the starts that go on; cancel them before the engines are closed.

    Raises:
        FabricError: an engine can't work as configured. All are closed again.
    """
    engines = tuple(engines)
    starts = {asyncio.create_task(_up(engine), name=engine.deployment.name) for engine in engines}
    if not starts:
        return starts
    try:
        done, late = await asyncio.wait(starts, timeout=TOGETHER_S, return_when=asyncio.FIRST_EXCEPTION)
        for start in done:
            start.result()  # raises
    except BaseException:
        await _end(starts)
        for engine in engines:
            await engine.close()
        raise
    for start in late:
        log.warning("deployment %s isn't up yet; the others begin without it", start.get_name())
        start.add_done_callback(_say)
    return late


async def _end(starts: Iterable[asyncio.Task[None]]) -> None:
    for start in starts:
        start.cancel()
    await asyncio.gather(*starts, return_exceptions=True)


async def _up(engine: Engine) -> None:
    wait_s = _AGAIN_S
    while True:
        try:
            await engine.start()
        except EngineUnavailable as error:
            log.warning("deployment %s: %s It is tried again in %g s.", engine.deployment.name, error.message, wait_s)
        else:
            return
        await asyncio.sleep(wait_s)
        wait_s = min(_AGAIN_CAP_S, 2 * wait_s)


def _say(start: asyncio.Task[None]) -> None:
    """How a late start has ended. A wrong setting ends no worker that has jobs: its slots stay none."""
    if start.cancelled():
        return
    error = start.exception()
    if error is None:
        log.info("deployment %s is up", start.get_name())
    elif isinstance(error, FabricError):
        log.error("deployment %s can't be used: %s", start.get_name(), error.message)
    else:
        log.error("deployment %s can't be used: %s", start.get_name(), type(error).__name__)
