"""How each kind of fault is done to the stage, and undone."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from storm.messages import Duplicator, bad_messages
from storm.plan import WORKERS, Fault
from storm.stage import Stage
from storm.values import Death, Probe

#: An outage of the store shorter than this isn't looked at from the door.
_LOOK_AT_S = 3.0
#: After how much of an outage the door is looked at. Of RabbitMQ it hears from schedulers, who wait for a frozen one.
_STORE_GONE_S, _BROKER_GONE_S, _BROKER_FROZEN_S = 0.5, 4.0, 8.0
_PROBE_S = 6.0
_GIANT = 24_000_000
_WRITES_S = 20.0


class Injector:
    """Breaks what a plan says, and notes what the laws need to know of it."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.deaths: list[Death] = []
        self.backs: list[int] = []
        self.outages: list[int] = []
        self.probes: list[Probe] = []
        self.odd: list[str] = []
        self.done: list[Fault] = []
        # What takes the store or the broker away does so alone: a frozen server can't be killed, nor one killed twice.
        self._one_at_a_time = asyncio.Lock()
        self._ways: dict[str, Callable[[Fault], Awaitable[None]]] = {
            "kill-worker": self._kill,
            "kill-process": self._kill,
            "kill-store": self._kill_store,
            "kill-broker": self._kill_broker,
            "freeze-store": self._freeze_store,
            "freeze-broker": self._freeze_broker,
            "freeze-process": self._freeze_process,
            "cut": self._link,
            "cut-broker": self._link,
            "delay": self._link,
            "black-hole": self._link,
            "black-hole-broker": self._link,
            "no-memory": self._no_memory,
            "disk-full": self._disk_full,
            "duplicates": self._duplicates,
            "bad-messages": self._bad_messages,
            "bad-requests": self._bad_requests,
            "engine-crash": self._engine_crash,
            "clock-jump": self._clock_jump,
        }

    async def inflict(self, fault: Fault) -> None:
        """Returns when it is over."""
        await self._ways[fault.kind](fault)
        self.done.append(fault)

    async def _kill(self, fault: Fault) -> None:
        if fault.target in WORKERS:
            worker = await asyncio.to_thread(self._worker, fault.target)
            if worker is not None:
                self.deaths.append(Death(worker, _now_ms(), fault.alone))
        self._stage.kill(fault.target)

    def _worker(self, name: str) -> str | None:
        try:
            return self._stage.worker_id(name)
        except Exception:  # noqa: BLE001 - the store may be away: then nothing is measured
            return None

    async def _kill_store(self, fault: Fault) -> None:
        async with self._taken_away():
            self._stage.valkey.kill()
            await self._outage(fault.for_s)
            try:
                await asyncio.to_thread(self._stage.start_store)
            except RuntimeError as error:
                self.odd.append(str(error)[-2000:])
                await asyncio.to_thread(self._stage.start_store)
            self.backs.append(_now_ms())

    @asynccontextmanager
    async def _taken_away(self) -> AsyncIterator[None]:
        """The store or the broker, by one fault at a time."""
        async with self._one_at_a_time:
            self.outages.append(_now_ms())
            yield

    async def _kill_broker(self, fault: Fault) -> None:
        rabbitmq = self._stage.rabbitmq
        assert rabbitmq is not None
        async with self._taken_away():
            rabbitmq.kill()
            # While other things are broken, too, those who could tell the door may be away.
            if fault.alone:
                await self._outage(max(_LOOK_AT_S, fault.for_s), _BROKER_GONE_S)
            else:
                await asyncio.sleep(fault.for_s)
            await asyncio.to_thread(rabbitmq.start)
            self.backs.append(_now_ms())

    async def _freeze_store(self, fault: Fault) -> None:
        async with self._taken_away(), self._frozen(self._stage.valkey.process.pid):  # type: ignore[union-attr]
            await self._outage(fault.for_s)

    async def _freeze_broker(self, fault: Fault) -> None:
        async with self._taken_away():
            assert self._stage.rabbitmq is not None
            assert self._stage.rabbitmq.process is not None
            async with self._frozen(self._stage.rabbitmq.process.pid):
                if fault.alone and fault.for_s > _BROKER_FROZEN_S:
                    await self._outage(fault.for_s, _BROKER_FROZEN_S)
                else:
                    await asyncio.sleep(fault.for_s)

    async def _freeze_process(self, fault: Fault) -> None:
        async with self._frozen(self._stage.processes[fault.target].popen.pid):
            await asyncio.sleep(fault.for_s)

    @asynccontextmanager
    async def _frozen(self, pid: int) -> AsyncIterator[None]:
        self._stage.freeze(pid)
        try:
            yield
        finally:
            self._stage.thaw(pid)

    async def _link(self, fault: Fault) -> None:
        link = self._stage.links[fault.target]
        link.turn({"cut": "cut", "delay": "delay"}.get(fault.kind.removesuffix("-broker"), "black-hole"))  # type: ignore[arg-type]
        try:
            if fault.target == "api-store" and fault.kind != "delay":
                await self._outage(fault.for_s)
            else:
                await asyncio.sleep(fault.for_s)
        finally:
            link.turn("open")

    async def _no_memory(self, fault: Fault) -> None:
        async with self._taken_away():
            redis = self._stage.store.redis
            used = (await asyncio.to_thread(redis.info, "memory"))["used_memory"]
            await asyncio.to_thread(redis.config_set, "maxmemory", max(1, used - 1_000_000))
            try:
                await asyncio.sleep(fault.for_s)
            finally:
                await asyncio.to_thread(redis.config_set, "maxmemory", 0)

    async def _disk_full(self, fault: Fault) -> None:
        async with self._taken_away():
            filler = self._stage.data / "filler"
            try:
                await asyncio.to_thread(_fill, filler)
                await asyncio.sleep(fault.for_s)
            finally:
                filler.unlink(missing_ok=True)
            # What it has answered before it noticed is in memory alone until it has written again.
            await self._stage.until(self._writes, _WRITES_S)

    def _writes(self) -> bool:
        return bool(self._stage.store.redis.info("persistence")["aof_last_write_status"] == "ok")

    async def _duplicates(self, fault: Fault) -> None:
        duplicator = Duplicator(self._stage)
        await asyncio.to_thread(duplicator.run, fault.for_s)

    async def _bad_messages(self, fault: Fault) -> None:
        await asyncio.to_thread(bad_messages, self._stage)

    async def _bad_requests(self, fault: Fault) -> None:
        """What no door should take in: it says so, and stays open."""
        deep = b'{"model":' + b"[" * 100_000
        bad = {
            "no JSON": b"\x00\xff\xfe",
            "deep": deep,
            "no fields": b"{}",
            "giant": b'{"model": "quick", "messages": [{"role": "user", "content": "' + b"x" * _GIANT + b'"}]}',
            "wrong option": b'{"model": "quick", "messages": [{"role": "user", "content": "x"}], "nonsense": 1}',
        }
        async with httpx.AsyncClient(base_url=self._stage.inner_api, timeout=30, trust_env=False) as http:
            for name, content in bad.items():
                try:
                    answer = await http.post("/v1/chat/completions", content=content)
                except httpx.HTTPError:
                    continue  # the door was killed, or hung up on a giant
                if not 400 <= answer.status_code < 500 and answer.status_code != 503:
                    self.odd.append(f"a bad request ({name}) got {answer.status_code}: {answer.text[:200]}")

    async def _engine_crash(self, fault: Fault) -> None:
        self._stage.kill(fault.target, hold=True)
        await asyncio.sleep(fault.for_s)
        self._stage.release(fault.target)

    async def _clock_jump(self, fault: Fault) -> None:
        self._stage.jump(float(fault.target))
        try:
            await asyncio.sleep(fault.for_s)
        finally:
            self._stage.jump(0)

    async def _outage(self, seconds: float, look_after_s: float = _STORE_GONE_S) -> None:
        """Of the store or the broker: the door is looked at meanwhile. It lasts until the door has answered."""
        if seconds < _LOOK_AT_S or not await self._door_is_there():
            await asyncio.sleep(seconds)
            return
        await asyncio.gather(asyncio.sleep(seconds), self._look_at_door(look_after_s))

    async def _look_at_door(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        body = {
            "endpoint": "/v1/chat/completions",
            "body": {"model": "quick", "messages": [{"role": "user", "content": "-"}]},
        }
        door = self._stage.processes["api"].popen
        async with httpx.AsyncClient(base_url=self._stage.inner_api, timeout=_PROBE_S, trust_env=False) as http:
            looks = (("GET", "/health/live", None), ("GET", "/health/ready", None), ("POST", "/v1/jobs", body))
            probes = await asyncio.gather(*(_probe(http, *look) for look in looks))
        if door is self._stage.processes["api"].popen and door.poll() is None:
            self.probes += probes

    async def _door_is_there(self) -> bool:
        """Not so when it was killed a moment ago and is starting."""
        async with httpx.AsyncClient(base_url=self._stage.inner_api, timeout=_PROBE_S, trust_env=False) as http:
            return (await _probe(http, "GET", "/health/live", None)).status == 200


async def _probe(http: httpx.AsyncClient, method: str, path: str, body: object) -> Probe:
    began = time.monotonic()
    try:
        answer = await http.request(method, path, json=body)
    except httpx.HTTPError:
        return Probe(path, 0, time.monotonic() - began)
    return Probe(path, answer.status_code, time.monotonic() - began, "retry-after" in answer.headers)


def _fill(filler: Path) -> None:
    """All that the file system has left, but never more than it could have: it isn't the machine's own."""
    free = os.statvfs(filler.parent)
    left = free.f_bavail * free.f_frsize
    with filler.open("wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, left)
            while True:
                file.write(b"\0" * 4096)
                file.flush()
        except OSError:
            return


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
