"""The asyncio client: the blocking one with ``await``. Compare ``_client_sync``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence, Sized
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, overload

import httpx

from fabric import _client_stream as streams
from fabric import _client_wire as wire
from fabric._client_http import RETRIES, TIMEOUT_S, AsyncHttp, Options
from fabric._client_progress import Progress, progress_bar
from fabric._client_stream import Event, Piece
from fabric._client_wire import Answer, Call, Mapped, Prompt, Request
from fabric.contracts.errors import FabricError


class AsyncJob:
    """A job that the fabric keeps, whether this process lives or not."""

    def __init__(self, http: AsyncHttp, job_id: str) -> None:
        self._http = http
        self.id = job_id

    async def refresh(self) -> dict[str, Any]:
        """The job as ``GET /v1/jobs/{id}`` shows it: state, queue position, attempts, decision, usage, cost."""
        return await _json(self._http, Call("GET", f"/v1/jobs/{self.id}"))

    async def result(self, timeout: float | None = None) -> Answer:  # noqa: ASYNC109
        """Waits for the end of the job, also across restarts of the fabric.

        Raises:
            TimeoutError: ``timeout`` seconds passed first; the job goes on.
            FabricError: why the job has no result.
        """
        job = await self.refresh()
        if not wire.ended(job):
            async with aclosing(self.events(timeout=timeout)) as events:
                async for _ in events:
                    pass
            job = await self.refresh()
        return wire.job_answer(job)

    async def events(self, *, after: int = 0, timeout: float | None = None) -> AsyncGenerator[Event, None]:  # noqa: ASYNC109
        """What happens to the job, from event number ``after`` + 1 to its end, each event once.

        Raises:
            TimeoutError: ``timeout`` seconds passed before the end.
            FabricError: the fabric can't be reached for a minute, or doesn't know the job.
        """
        reading = streams.Reading(self.id, after, timeout)
        while not reading.ended:
            try:
                async with aclosing(self._read(reading)) as events:
                    async for event in events:
                        yield event
                reading.broke_off()
            except FabricError as error:
                reading.failed(error)
            await asyncio.sleep(reading.pause_s)

    async def cancel(self) -> dict[str, Any]:
        """Stops the job where it is; the answer is the job. One that has ended stays as it is."""
        return await _json(self._http, Call("POST", f"/v1/jobs/{self.id}/cancel"))

    async def delete(self) -> None:
        """Of a job that has ended: its answer and its log are gone. What it took stays in the accounts."""
        await _json(self._http, Call("DELETE", f"/v1/jobs/{self.id}"))

    async def _read(self, reading: streams.Reading) -> AsyncGenerator[Event, None]:
        decoder = streams.ServerSentEvents()
        async with self._http.stream(reading.call(), reading.silence_s()) as chunks:
            async for chunk in chunks:
                for identifier, data in decoder.feed(chunk):
                    event = streams.event(identifier, data)
                    if reading.take(event):
                        yield event
                if reading.ended or reading.too_patient:
                    return

    def __repr__(self) -> str:
        return f"<AsyncJob {self.id}>"


class AsyncBatch:
    """A batch of requests from a file."""

    def __init__(self, http: AsyncHttp, values: dict[str, Any]) -> None:
        self._http = http
        self.values = values  #: as the Batch API showed it last
        self.id: str = values["id"]

    @property
    def status(self) -> str:
        return str(self.values["status"])

    async def refresh(self) -> AsyncBatch:
        self.values = await _json(self._http, Call("GET", f"/v1/batches/{self.id}"))
        return self

    async def wait(self, timeout: float | None = None, *, progress: bool | Progress | None = None) -> AsyncBatch:  # noqa: ASYNC109
        """Until every line has its answer or error. ``progress``: a bar (``None``: on a terminal), or a
        function that takes the lines done and their number.

        Raises:
            TimeoutError: ``timeout`` seconds passed first; the batch goes on.
        """
        deadline = streams.Deadline(timeout)
        if callable(progress):
            await self._wait(deadline, progress)
        else:
            with progress_bar(self.id, progress) as show:
                await self._wait(deadline, show)
        return self

    async def _wait(self, deadline: streams.Deadline, show: Progress) -> None:
        pauses, patience = streams.pauses(), streams.Deadline(streams.PATIENCE_S)
        while True:
            show(*wire.batch_counts(self.values))
            if wire.batch_ended(self.values):
                return
            await asyncio.sleep(min(next(pauses), deadline.left_s))
            deadline.check(f"The batch {self.id} hasn't ended yet.")
            try:
                await self.refresh()
                patience = streams.Deadline(streams.PATIENCE_S)
            except FabricError as error:
                if not wire.passing(error) or patience.left_s <= 0:
                    raise

    async def results(self) -> AsyncIterator[dict[str, Any]]:
        """Every line of the output file, then of the error file, as the Batch API writes them."""
        for file_id in wire.result_files(self.values):
            decoder = streams.Lines()
            async for chunk in _content(self._http, file_id):
                for line in decoder.feed(chunk):
                    yield json.loads(line)
            for line in decoder.end():
                yield json.loads(line)

    async def report(self) -> dict[str, Any]:
        """As ``Batch.report``."""
        return await _json(self._http, Call("GET", f"/v1/batches/{self.id}/report"))

    async def cancel(self) -> AsyncBatch:
        self.values = await _json(self._http, Call("POST", f"/v1/batches/{self.id}/cancel"))
        return self

    def __repr__(self) -> str:
        return f"<AsyncBatch {self.id} {self.status}>"


class AsyncClient:
    """Talks to a fabric. The same as ``Client``, with ``await`` and ``async for``.

    >>> async with AsyncClient() as client:
    ...     answer = await client.chat("Say hello.")
    ...     async for piece in await client.chat("Say hello.", stream=True):
    ...         print(piece.text, end="")
    ...     async for mapped in client.map(["one", "two"]):
    ...         print(mapped.index, mapped.text)

    For one event loop.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        retries: int = RETRIES,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        self._http = AsyncHttp(Options(base_url, api_key, timeout_s, retries), http)
        self._first_model: str | None = None

    @overload
    async def chat(
        self, prompt: Prompt, *, model: str | None = ..., stream: Literal[False] = ..., **params: Any
    ) -> Answer: ...

    @overload
    async def chat(
        self, prompt: Prompt, *, model: str | None = ..., stream: Literal[True], **params: Any
    ) -> AsyncIterator[Piece]: ...

    async def chat(
        self, prompt: Prompt, *, model: str | None = None, stream: bool = False, **params: Any
    ) -> Answer | AsyncIterator[Piece]:
        """As ``Client.chat``."""
        body = wire.chat_body(prompt, model or await self._model(), params)
        return self._pieces(body) if stream else await self._ask(wire.CHAT, body)

    async def submit(
        self,
        request: Request,
        *,
        model: str | None = None,
        endpoint: str = wire.CHAT,
        idempotency_key: str | None = None,
        **params: Any,
    ) -> AsyncJob:
        """As ``Client.submit``."""
        body = await self._body(request, model, params)
        call = wire.create("/v1/jobs", wire.job_body(endpoint, body), idempotency_key)
        return self.job((await _json(self._http, call))["id"])

    async def map(
        self,
        requests: Iterable[Request],
        *,
        model: str | None = None,
        concurrency: int = 32,
        progress: bool | None = None,
        **params: Any,
    ) -> AsyncGenerator[Mapped, None]:
        """As ``Client.map``."""
        waiting = iter(enumerate(requests))
        total = len(requests) if isinstance(requests, Sized) else None
        running: set[asyncio.Task[Mapped]] = set()
        finished = 0
        try:
            with progress_bar("requests", progress) as show:
                show(0, total)
                while True:
                    while len(running) < concurrency and (item := next(waiting, None)) is not None:
                        running.add(asyncio.create_task(self._mapped(*item, model, params)))
                    if not running:
                        return
                    done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        finished += 1
                        show(finished, total)
                        yield task.result()
        finally:
            for task in running:
                task.cancel()

    async def batch(
        self,
        path: str | Path,
        *,
        endpoint: str | None = None,
        deadline_s: float | None = None,
        max_cost_usd: float | None = None,
        idempotency_key: str | None = None,
    ) -> AsyncBatch:
        """As ``Client.batch``."""
        endpoint = endpoint or wire.endpoint_of(Path(path))
        limits: dict[str, Any] = {"deadline_s": deadline_s, "max_cost_usd": max_cost_usd}
        return await self.create_batch(await self.upload(path), endpoint, **limits, idempotency_key=idempotency_key)

    async def upload(self, path: str | Path) -> str:
        """Uploads a batch's input; answers the file's id."""
        return str(json.loads((await self._http.upload(Path(path), "batch")).body)["id"])

    async def create_batch(
        self,
        file_id: str,
        endpoint: str,
        *,
        deadline_s: float | None = None,
        max_cost_usd: float | None = None,
        idempotency_key: str | None = None,
    ) -> AsyncBatch:
        body = wire.batch_body(file_id, endpoint, deadline_s, max_cost_usd)
        call = wire.create("/v1/batches", body, idempotency_key)
        return AsyncBatch(self._http, await _json(self._http, call))

    async def get_batch(self, batch_id: str) -> AsyncBatch:
        return AsyncBatch(self._http, await _json(self._http, Call("GET", f"/v1/batches/{batch_id}")))

    async def batches(self, *, limit: int | None = None) -> AsyncIterator[dict[str, Any]]:
        """Batches, newest first, at most ``limit``."""
        pages = wire.Pages("/v1/batches", limit, mark="after")
        while pages.more:
            for batch in pages.read(await _json(self._http, pages.call())):
                yield batch

    def content(self, file_id: str) -> AsyncIterator[bytes]:
        """A file's bytes, as they come."""
        return _content(self._http, file_id)

    def job(self, job_id: str) -> AsyncJob:
        """A job by its id; nothing is sent."""
        return AsyncJob(self._http, job_id)

    async def jobs(self, *, limit: int | None = None) -> AsyncIterator[dict[str, Any]]:
        """Jobs, newest first, at most ``limit``."""
        pages = wire.Pages("/v1/jobs", limit)
        while pages.more:
            for job in pages.read(await _json(self._http, pages.call())):
                yield job

    async def dead_letters(
        self, *, limit: int | None = None, **filters: str | float | None
    ) -> AsyncIterator[dict[str, Any]]:
        """Parked jobs, newest first; ``filters`` as ``GET /v1/dead-letters`` takes them."""
        pages = wire.dead_letters(limit, filters)
        while pages.more:
            for letter in pages.read(await _json(self._http, pages.call())):
                yield letter

    async def dead_letter(self, job_id: str) -> dict[str, Any]:
        """One parked job: why it is there, and every attempt."""
        return await _json(self._http, Call("GET", f"/v1/dead-letters/{job_id}"))

    async def replay(self, job_id: str, *, policy: str | None = None) -> dict[str, Any]:
        """The parked job lines up again, under ``policy`` from now on; the answer is the job."""
        return await _json(self._http, wire.replay(job_id, policy))

    async def drop(self, job_id: str) -> dict[str, Any]:
        """The parked job goes for good."""
        return await _json(self._http, Call("DELETE", f"/v1/dead-letters/{job_id}"))

    async def webhook_deliveries(
        self, *, limit: int | None = None, **filters: str | None
    ) -> AsyncIterator[dict[str, Any]]:
        """As ``Client.webhook_deliveries``."""
        pages = wire.webhook_deliveries(limit, filters)
        while pages.more:
            for delivery in pages.read(await _json(self._http, pages.call())):
                yield delivery

    async def replay_webhook(self, delivery_id: str) -> dict[str, Any]:
        """As ``Client.replay_webhook``."""
        return await _json(self._http, wire.replay_webhook(delivery_id))

    async def route(self, request: Request, *, model: str | None = None, **params: Any) -> dict[str, Any]:
        """As ``Client.route``."""
        return await _json(self._http, wire.route(await self._body(request, model, params)))

    async def models(self) -> list[dict[str, Any]]:
        return list((await _json(self._http, Call("GET", "/v1/models")))["data"])

    async def policy(self, policy_hash: str) -> dict[str, Any]:
        """The policies, rules, privacy and places that decisions with this hash were made under."""
        return await _json(self._http, Call("GET", f"/v1/policies/{policy_hash}"))

    async def usage(
        self, *, group_by: Sequence[str] = (), limit: int | None = None, **filters: str | int | None
    ) -> AsyncIterator[dict[str, Any]]:
        """Requests and tokens, as ``GET /v1/usage`` shows them, all pages; ``filters`` as there."""
        async for row in self._spending("/v1/usage", group_by, limit, filters):
            yield row

    async def costs(
        self, *, group_by: Sequence[str] = (), limit: int | None = None, **filters: str | int | None
    ) -> AsyncIterator[dict[str, Any]]:
        """What it cost, as ``GET /v1/costs`` shows it, all pages; ``filters`` as there."""
        async for row in self._spending("/v1/costs", group_by, limit, filters):
            yield row

    async def costs_summary(self, **filters: str | int | None) -> dict[str, Any]:
        """Tiers with the hours of their workers, savings, and the month's forecast."""
        query = {name: str(value) for name, value in filters.items() if value is not None}
        return await _json(self._http, Call("GET", "/v1/costs/summary", query=query))

    async def _spending(
        self, path: str, group_by: Sequence[str], limit: int | None, filters: Mapping[str, Any]
    ) -> AsyncIterator[dict[str, Any]]:
        pages = wire.spending(path, limit, group_by, filters)
        while pages.more:
            for row in pages.read(await _json(self._http, pages.call())):
                yield row

    async def budgets(self) -> list[dict[str, Any]]:
        """What budgets there are, and what is left of them, as ``GET /v1/budgets`` shows them."""
        found: list[dict[str, Any]] = (await _json(self._http, Call("GET", "/v1/budgets")))["data"]
        return found

    async def status(self) -> dict[str, Any]:
        """The tiers with their deployments, workers and slots, as ``GET /v1/tiers`` shows them."""
        return await _json(self._http, Call("GET", "/v1/tiers"))

    async def workers(self) -> list[dict[str, Any]]:
        """The workers that live, as ``GET /v1/workers`` shows them."""
        found: list[dict[str, Any]] = (await _json(self._http, Call("GET", "/v1/workers")))["data"]
        return found

    async def close(self) -> None:
        await self._http.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _model(self) -> str:
        if self._first_model is None:
            self._first_model = wire.first_model(await self.models())
        return self._first_model

    async def _body(self, request: Request, model: str | None, params: Mapping[str, Any]) -> dict[str, Any]:
        if isinstance(request, Mapping):
            named = model or request.get("model") or await self._model()
            return {**request, **params, "model": named}
        return wire.chat_body(request, model or await self._model(), params)

    async def _ask(self, endpoint: str, body: dict[str, Any]) -> Answer:
        response = await self._http.send(wire.create(endpoint, body))
        return wire.answer(response.body, response.headers)

    async def _pieces(self, body: dict[str, Any]) -> AsyncIterator[Piece]:
        decoder = streams.ServerSentEvents()
        async with self._http.stream(wire.create(wire.CHAT, {**body, "stream": True})) as chunks:
            async for chunk in chunks:
                for _, data in decoder.feed(chunk):
                    if data == streams.DONE:
                        return
                    yield streams.piece(data)
        raise streams.cut_off()

    async def _mapped(self, index: int, request: Request, model: str | None, params: Mapping[str, Any]) -> Mapped:
        try:
            body = await self._body(request, model, params)
            return Mapped(index, request, await self._ask(wire.endpoint_for(body), body), None)
        except FabricError as error:
            return Mapped(index, request, None, error)


async def _json(http: AsyncHttp, call: Call) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((await http.send(call)).body)
    return values


async def _content(http: AsyncHttp, file_id: str) -> AsyncIterator[bytes]:
    async with http.stream(Call("GET", f"/v1/files/{file_id}/content")) as chunks:
        async for chunk in chunks:
            yield chunk
