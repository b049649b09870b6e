"""A run: the stage, the load, the plan, and the evidence that is left at the end."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from redis.exceptions import RedisError

from fabric.contracts.errors import Unavailable
from storm import evidence
from storm.faults import Injector
from storm.load import Load
from storm.plan import Fault, Transport
from storm.stage import HOOK_KEY, Stage
from storm.values import Evidence

#: How long what is left may take to end when nothing breaks any more.
DRAIN_S = 150.0


@dataclass(frozen=True, slots=True)
class Result:
    """``inflicted``: what was done of the plan. ``asked``: requests of the clients, without lines of batches."""

    evidence: Evidence
    inflicted: tuple[Fault, ...]
    asked: int
    seconds: float


async def run(
    folder: Path, transport: Transport, plan: tuple[Fault, ...], seconds: float, say: Callable[[str], None]
) -> Result:
    """``folder``: a new one; logs of all processes are in it afterwards."""
    stage = Stage(folder, transport)
    try:
        await stage.start()
        say(f"the stage is up ({len(stage.processes)} processes, data {'on' if stage.mounted else 'not on'} a tmpfs)")
        before = await asyncio.to_thread(evidence.memory, stage.store)
        injector, load = Injector(stage), Load(stage.api)
        began = time.monotonic()
        clients = asyncio.create_task(load.run())
        storm = asyncio.create_task(_storm(injector, plan, began, say))
        await asyncio.sleep(seconds)
        await storm
        load.stop()
        lasted_s = time.monotonic() - began
        say("the storm is over; waiting for what is left to end")
        await clients
        await load.collect(DRAIN_S)
        await stage.until(lambda: not any(_left(stage).values()), DRAIN_S / 2)
        await stage.until(lambda: not evidence.untold(stage.database), DRAIN_S / 2)
        found = await asyncio.to_thread(_evidence, stage, injector, load, before)
    finally:
        await stage.close()
    # Processes are known to have lived to their end only now.
    return Result(replace(found, memory=tuple(stage.memory)), tuple(injector.done), load.asked, lasted_s)


async def _storm(injector: Injector, plan: tuple[Fault, ...], began: float, say: Callable[[str], None]) -> None:
    async def one(fault: Fault) -> None:
        await asyncio.sleep(max(0.0, began + fault.at_s - time.monotonic()))
        say(str(fault))
        try:
            await injector.inflict(fault)
        except (Unavailable, RedisError, OSError) as error:
            say(f"{fault.kind} couldn't be done while others were: {type(error).__name__}")

    await asyncio.gather(*map(one, plan))


def _left(stage: Stage) -> dict[str, int]:
    with suppress(Unavailable, RedisError, OSError):
        return evidence.left(stage.store)
    return {"unknown": 1}


def _evidence(stage: Stage, injector: Injector, load: Load, before: int) -> Evidence:
    # What is on the tmpfs goes with it.
    shutil.copy(stage.database, stage.folder)
    return Evidence(
        told=tuple(load.told),
        rows=tuple(evidence.rows(stage.database)),
        generations=tuple(evidence.generations(stage.folder)),
        lines=load.lines,
        batches=load.batches,
        ends=evidence.ends(stage.store),
        replayed=frozenset(load.asked_again),
        second_tries=evidence.second_tries(stage.store),
        events=tuple(evidence.events(stage.folder / "receiver.jsonl", HOOK_KEY)),
        left=_left(stage),
        holes=stage.holes,
        kept=evidence.kept(stage.store, before),
        budgets=evidence.budgets(stage.store),
        probes=tuple(injector.probes),
        deaths=tuple(injector.deaths),
        backs=tuple(injector.backs),
        outages=tuple(injector.outages),
        exits=tuple(stage.exits),
        odd=(*load.odd, *injector.odd),
    )
