"""The clients: a mixed load that asks again with the same key until it knows what became of each request."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections import Counter
from contextlib import suppress
from typing import Any

import httpx

from storm.asks import CHAT, FIRST_LINE, Ask, ask
from storm.values import Told

#: Clients side by side, and the pause of each between two requests, least and most.
CLIENTS = 16
_PAUSE_S = (0.1, 0.5)
_BATCH_LINES, _BATCH_EVERY_S = 100, 12.0
#: How long one try may take, and how long a client insists after the load has ended.
_TRY_S = 30.0
_AGAIN_S = 0.3
#: Come back later: the store is away or full, or the request with this key is still being taken in.
_LATER = frozenset((409, 429, 503))
#: Between two looks at parked jobs, and how often one of them is replayed before it is left where it is.
_REPLAY_EVERY_S = 2.0
REPLAYS = 8


class Load:
    def __init__(self, url: str) -> None:
        self.told: list[Told] = []
        self.odd: list[str] = []
        self.lines: dict[tuple[str, int], int] = {}
        self.batches: dict[str, list[str]] = {}
        self.asked = 0
        #: Parked jobs that were asked to line up again; and how often each did, each time asked twice at once.
        self.asked_again: set[str] = set()
        self._replayed: Counter[str] = Counter()
        self._url = url
        self._submitted: list[tuple[str, Ask]] = []
        self._stopping = asyncio.Event()
        self._collected = asyncio.Event()
        self._numbers = itertools.count()
        self._line_numbers = itertools.count(FIRST_LINE)
        self._dice = random.Random(0)

    async def run(self) -> None:
        """Until ``stop``; then until every client knows what became of its request."""
        limits = httpx.Limits(max_connections=200, max_keepalive_connections=50)
        async with httpx.AsyncClient(base_url=self._url, timeout=_TRY_S, trust_env=False, limits=limits) as self._http:
            clients = [self._client() for _ in range(CLIENTS)]
            await asyncio.gather(*clients, self._submit_batches(), self._replay(self._stopping))

    def stop(self) -> None:
        self._stopping.set()

    async def collect(self, within_s: float) -> None:
        """Asks what became of submitted jobs and batches. Whatever doesn't end in time is left without a state."""
        until = time.monotonic() + within_s
        async with httpx.AsyncClient(base_url=self._url, timeout=_TRY_S, trust_env=False) as self._http:
            replaying = asyncio.create_task(self._replay(self._collected))
            try:
                for job_id, asked in self._submitted:
                    self.told.append(await self._result(job_id, asked, until))
                for batch_id in {batch for batch, _ in self.lines}:
                    self.batches[batch_id] = await self._output(batch_id, until)
            finally:
                self._collected.set()
                await replaying

    async def _client(self) -> None:
        while not self._stopping.is_set():
            asked = ask(next(self._numbers))
            self.asked += 1
            if asked.kind == "chat":
                await self._insist(asked, self._whole)
            elif asked.kind == "stream":
                await self._insist(asked, self._streamed)
            else:
                await self._insist(asked, self._submit)
            await asyncio.sleep(self._dice.uniform(*_PAUSE_S))

    async def _insist(self, asked: Ask, attempt: Any) -> None:
        """Again and again with the same key, as long as nobody has said what became of it."""
        until = None
        while until is None or time.monotonic() < until:
            try:
                if await attempt(asked):
                    return
            except httpx.HTTPError:
                pass  # perhaps it was accepted, perhaps not: the key makes one job of it
            if self._stopping.is_set() and until is None:
                until = time.monotonic() + 2 * _TRY_S
            await asyncio.sleep(_AGAIN_S)

    async def _whole(self, asked: Ask) -> bool:
        answer = await self._http.post(CHAT, json=asked.body(), headers={"idempotency-key": asked.key})
        job_id = answer.headers.get("x-fabric-job-id")
        if answer.status_code != 200 or job_id is None:
            return self._failed(asked, answer.status_code, job_id, answer.text)
        self._tell(asked, job_id, answer.json()["choices"][0]["message"]["content"], "succeeded")
        return True

    async def _streamed(self, asked: Ask) -> bool:
        headers = {"idempotency-key": asked.key}
        async with self._http.stream("POST", CHAT, json=asked.body(), headers=headers) as answer:
            job_id = answer.headers.get("x-fabric-job-id")
            if answer.status_code != 200 or job_id is None:
                await answer.aread()
                return self._failed(asked, answer.status_code, job_id, answer.text)
            words: list[str] = []
            async for line in answer.aiter_lines():
                if not line.startswith("data: "):
                    continue
                if line == "data: [DONE]":
                    self._tell(asked, job_id, "".join(words), "succeeded")
                    return True
                chunk = json.loads(line.removeprefix("data: "))
                if "error" in chunk:
                    # The gateway's own trouble ends the stream and not the job: the client asks again.
                    later = chunk["error"].get("code") in ("unavailable", "shutting_down")
                    self._tell(asked, job_id)
                    return not later
                words += (choice["delta"].get("content") or "" for choice in chunk["choices"])
        self.odd.append(f"the stream of ask {asked.n} ended without an end")
        return True

    async def _submit(self, asked: Ask) -> bool:
        body = {"endpoint": CHAT, "body": asked.body()}
        answer = await self._http.post("/v1/jobs", json=body, headers={"idempotency-key": asked.key})
        if answer.status_code not in (200, 202):
            return self._failed(asked, answer.status_code, None, answer.text)
        job_id = answer.json()["id"]
        self._tell(asked, job_id)
        self._submitted.append((job_id, asked))
        if asked.kind == "cancelled":
            await asyncio.sleep(self._dice.uniform(0, 0.3))
            await self._http.post(f"/v1/jobs/{job_id}/cancel")
        return True

    def _failed(self, asked: Ask, status: int, job_id: str | None, text: str) -> bool:
        """Whether the client knows enough."""
        if job_id is not None:
            self._tell(asked, job_id)
            return True
        if status in _LATER:
            return False
        self.odd.append(f"ask {asked.n} ({asked.kind}) got {status}: {text[:200]}")
        return True

    def _tell(self, asked: Ask, job_id: str, text: str | None = None, state: str | None = None) -> None:
        self.told.append(Told(job_id, asked.n, asked.label, text, state, asked.deadline_s))

    async def _submit_batches(self) -> None:
        while not self._stopping.is_set():
            await self._insist(ask(next(self._line_numbers), line=True), self._submit_batch)
            with suppress(TimeoutError):
                async with asyncio.timeout(_BATCH_EVERY_S):
                    await self._stopping.wait()

    async def _submit_batch(self, first: Ask) -> bool:
        asks = [first, *(ask(next(self._line_numbers), line=True) for _ in range(_BATCH_LINES - 1))]
        lines = [{"custom_id": f"line-{one.n}", "method": "POST", "url": CHAT, "body": one.body()} for one in asks]
        content = "\n".join(map(json.dumps, lines)).encode()
        answer = await self._http.post("/v1/files", files={"file": ("in.jsonl", content)}, data={"purpose": "batch"})
        if answer.status_code != 200:
            return self._failed(first, answer.status_code, None, answer.text)
        values = {"input_file_id": answer.json()["id"], "endpoint": CHAT, "completion_window": "24h"}
        key = {"idempotency-key": f"batch-{first.n}-{asks[-1].n}"}
        while True:
            try:
                made = await self._http.post("/v1/batches", json=values, headers=key)
            except httpx.HTTPError:
                made = None
            if made is not None and made.status_code == 200:
                break
            if made is not None and made.status_code not in _LATER:
                return self._failed(first, made.status_code, None, made.text)
            await asyncio.sleep(_AGAIN_S)
        batch_id = made.json()["id"]
        self.lines |= {(batch_id, line): one.n for line, one in enumerate(asks, 1)}
        return True

    async def _replay(self, stop: asyncio.Event) -> None:
        """What is parked lines up again, until ``stop``."""
        while not stop.is_set():
            try:
                parked = await self._http.get("/v1/dead-letters", params={"limit": 100})
                for letter in parked.json()["data"] if parked.status_code == 200 else ():
                    job_id = letter["job_id"]
                    if self._replayed[job_id] < REPLAYS:
                        self.asked_again.add(job_id)
                        both = await asyncio.gather(self._replay_one(job_id), self._replay_one(job_id))
                        self._replayed[job_id] += any(both)
            except httpx.HTTPError:
                pass  # the next look finds it still parked, or not
            with suppress(TimeoutError):
                async with asyncio.timeout(_REPLAY_EVERY_S):
                    await stop.wait()

    async def _replay_one(self, job_id: str) -> bool:
        answer = await self._http.post(f"/v1/dead-letters/{job_id}/replay")
        # 409: the other replay was first, and the job has gone on since.
        if answer.status_code != 200 and answer.status_code not in _LATER:
            self.odd.append(f"the replay of {job_id} got {answer.status_code}: {answer.text[:200]}")
        return answer.status_code == 200

    async def _result(self, job_id: str, asked: Ask, until: float) -> Told:
        while True:
            job = await self._get(f"/v1/jobs/{job_id}", until)
            values = job.json() if job is not None and job.status_code == 200 else {}
            state = values.get("state")
            again = state == "dead" and self._replayed[job_id] < REPLAYS
            ended = not again and state not in (None, "queued", "dispatched", "running")
            if ended or time.monotonic() > until:
                result = values.get("result")
                text = result["choices"][0]["message"]["content"] if result else None
                return Told(job_id, asked.n, asked.label, text, state if ended else None, asked.deadline_s)
            await asyncio.sleep(_AGAIN_S)

    async def _output(self, batch_id: str, until: float) -> list[str]:
        values: dict[str, Any] = {}
        while values.get("status") not in ("completed", "failed", "expired", "cancelled"):
            if time.monotonic() > until:
                return []
            batch = await self._get(f"/v1/batches/{batch_id}", until)
            values = batch.json() if batch is not None and batch.status_code == 200 else values
            await asyncio.sleep(_AGAIN_S / 2)
        names = []
        for file_id in (values.get("output_file_id"), values.get("error_file_id")):
            content = await self._get(f"/v1/files/{file_id}/content", until) if file_id else None
            for line in content.text.splitlines() if content is not None else ():
                done = json.loads(line)
                names.append(done["custom_id"])
                if done["error"] is None:
                    n = int(done["custom_id"].removeprefix("line-"))
                    text = done["response"]["body"]["choices"][0]["message"]["content"]
                    self.told.append(
                        Told(done["response"]["request_id"], n, ask(n, line=True).label, text, "succeeded")
                    )
        return names

    async def _get(self, path: str, until: float) -> httpx.Response | None:
        while True:
            try:
                answer = await self._http.get(path)
                if answer.status_code not in _LATER:
                    return answer
            except httpx.HTTPError:
                pass
            if time.monotonic() > until:
                return None
            await asyncio.sleep(_AGAIN_S)
