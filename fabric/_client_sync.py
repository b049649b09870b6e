"""The blocking client."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Literal, overload

import httpx

from fabric import _client_stream as streams
from fabric import _client_wire as wire
from fabric._client_http import RETRIES, TIMEOUT_S, Http, Options
from fabric._client_progress import Progress, progress_bar
from fabric._client_stream import Event, Piece
from fabric._client_wire import Answer, Call, Mapped, Prompt, Request
from fabric.contracts.errors import FabricError


class Job:
    """A job that the fabric keeps, whether this process lives or not."""

    def __init__(self, http: Http, job_id: str) -> None:
        self._http = http
        self.id = job_id

    def refresh(self) -> dict[str, Any]:
        """The job as ``GET /v1/jobs/{id}`` shows it: state, queue position, attempts, decision, usage, cost."""
        return _json(self._http, Call("GET", f"/v1/jobs/{self.id}"))

    def result(self, timeout: float | None = None) -> Answer:
        """Waits for the end of the job, also across restarts of the fabric.

        Raises:
            TimeoutError: ``timeout`` seconds passed first; the job goes on.
            FabricError: why the job has no result.
        """
        job = self.refresh()
        if not wire.ended(job):
            for _ in self.events(timeout=timeout):
                pass
            job = self.refresh()
        return wire.job_answer(job)

    def events(self, *, after: int = 0, timeout: float | None = None) -> Iterator[Event]:
        """What happens to the job, from event number ``after`` + 1 to its end, each event once.

        Raises:
            TimeoutError: ``timeout`` seconds passed before the end.
            FabricError: the fabric can't be reached for a minute, or doesn't know the job.
        """
        reading = streams.Reading(self.id, after, timeout)
        while not reading.ended:
            try:
                yield from self._read(reading)
                reading.broke_off()
            except FabricError as error:
                reading.failed(error)
            time.sleep(reading.pause_s)

    def cancel(self) -> dict[str, Any]:
        """Stops the job where it is; the answer is the job. One that has ended stays as it is."""
        return _json(self._http, Call("POST", f"/v1/jobs/{self.id}/cancel"))

    def delete(self) -> None:
        """Of a job that has ended: its answer and its log are gone. What it took stays in the accounts."""
        _json(self._http, Call("DELETE", f"/v1/jobs/{self.id}"))

    def _read(self, reading: streams.Reading) -> Iterator[Event]:
        decoder = streams.ServerSentEvents()
        with self._http.stream(reading.call(), reading.silence_s()) as chunks:
            for chunk in chunks:
                for identifier, data in decoder.feed(chunk):
                    event = streams.event(identifier, data)
                    if reading.take(event):
                        yield event
                if reading.ended or reading.too_patient:
                    return

    def __repr__(self) -> str:
        return f"<Job {self.id}>"


class Batch:
    """A batch of requests from a file."""

    def __init__(self, http: Http, values: dict[str, Any]) -> None:
        self._http = http
        self.values = values  #: as the Batch API showed it last
        self.id: str = values["id"]

    @property
    def status(self) -> str:
        return str(self.values["status"])

    def refresh(self) -> Batch:
        self.values = _json(self._http, Call("GET", f"/v1/batches/{self.id}"))
        return self

    def wait(self, timeout: float | None = None, *, progress: bool | Progress | None = None) -> Batch:
        """Until every line has its answer or error. ``progress``: a bar (``None``: on a terminal), or a
        function that takes the lines done and their number.

        Raises:
            TimeoutError: ``timeout`` seconds passed first; the batch goes on.
        """
        deadline = streams.Deadline(timeout)
        if callable(progress):
            self._wait(deadline, progress)
        else:
            with progress_bar(self.id, progress) as show:
                self._wait(deadline, show)
        return self

    def _wait(self, deadline: streams.Deadline, show: Progress) -> None:
        pauses, patience = streams.pauses(), streams.Deadline(streams.PATIENCE_S)
        while True:
            show(*wire.batch_counts(self.values))
            if wire.batch_ended(self.values):
                return
            time.sleep(min(next(pauses), deadline.left_s))
            deadline.check(f"The batch {self.id} hasn't ended yet.")
            try:
                self.refresh()
                patience = streams.Deadline(streams.PATIENCE_S)
            except FabricError as error:
                if not wire.passing(error) or patience.left_s <= 0:
                    raise

    def results(self) -> Iterator[dict[str, Any]]:
        """Every line of the output file, then of the error file, as the Batch API writes them."""
        for file_id in wire.result_files(self.values):
            decoder = streams.Lines()
            for chunk in _content(self._http, file_id):
                yield from map(json.loads, decoder.feed(chunk))
            yield from map(json.loads, decoder.end())

    def report(self) -> dict[str, Any]:
        """What the lines that have ended took: places, tokens, seconds, US dollars."""
        return _json(self._http, Call("GET", f"/v1/batches/{self.id}/report"))

    def cancel(self) -> Batch:
        self.values = _json(self._http, Call("POST", f"/v1/batches/{self.id}/cancel"))
        return self

    def __repr__(self) -> str:
        return f"<Batch {self.id} {self.status}>"


class Client:
    """Talks to a fabric.

    >>> client = Client()
    >>> client.chat("Say hello.").text
    >>> job = client.submit("Say hello.")
    >>> job.result(timeout=60).text
    >>> for mapped in client.map(["one", "two"]):
    ...     print(mapped.index, mapped.text)

    ``base_url`` and ``api_key`` default to ``FABRIC_URL`` and ``FABRIC_API_KEY``. Safe to share
    between threads. Errors are those of ``fabric.contracts.errors``; passing ones are tried again.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        retries: int = RETRIES,
        http: httpx.Client | None = None,
    ) -> None:
        self._http = Http(Options(base_url, api_key, timeout_s, retries), http)
        self._first_model: str | None = None

    @overload
    def chat(
        self, prompt: Prompt, *, model: str | None = ..., stream: Literal[False] = ..., **params: Any
    ) -> Answer: ...

    @overload
    def chat(
        self, prompt: Prompt, *, model: str | None = ..., stream: Literal[True], **params: Any
    ) -> Iterator[Piece]: ...

    def chat(
        self, prompt: Prompt, *, model: str | None = None, stream: bool = False, **params: Any
    ) -> Answer | Iterator[Piece]:
        """Asks and waits. ``prompt`` is a text or a list of messages; ``params`` are OpenAI's
        (``max_tokens``, ``tools``, …) and ``fabric`` (``privacy``, ``deadline_s``, …). ``model=None``
        takes the fabric's first."""
        body = wire.chat_body(prompt, model or self._model(), params)
        return self._pieces(body) if stream else self._ask(wire.CHAT, body)

    def submit(
        self,
        request: Request,
        *,
        model: str | None = None,
        endpoint: str = wire.CHAT,
        idempotency_key: str | None = None,
        **params: Any,
    ) -> Job:
        """Hands over a prompt, or a whole body for ``endpoint``, and returns at once."""
        body = self._body(request, model, params)
        call = wire.create("/v1/jobs", wire.job_body(endpoint, body), idempotency_key)
        return self.job(_json(self._http, call)["id"])

    def map(
        self,
        requests: Iterable[Request],
        *,
        model: str | None = None,
        concurrency: int = 32,
        progress: bool | None = None,
        **params: Any,
    ) -> Iterator[Mapped]:
        """Asks for every request, ``concurrency`` at a time, and yields in the order of completion.

        ``requests`` is read as it is needed. One that fails has its error in its ``Mapped``; the
        others go on. ``progress``: a bar (``None``: when stderr is a terminal).
        """
        done: SimpleQueue[Future[Mapped]] = SimpleQueue()
        waiting = iter(enumerate(requests))
        total = len(requests) if isinstance(requests, Sized) else None
        finished = running = 0
        pool = ThreadPoolExecutor(concurrency, thread_name_prefix="fabric-map")
        try:
            with progress_bar("requests", progress) as show:
                show(0, total)
                while True:
                    while running < concurrency and (item := next(waiting, None)) is not None:
                        pool.submit(self._mapped, *item, model, params).add_done_callback(done.put)
                        running += 1
                    if not running:
                        return
                    mapped = done.get().result()
                    running, finished = running - 1, finished + 1
                    show(finished, total)
                    yield mapped
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def batch(
        self,
        path: str | Path,
        *,
        endpoint: str | None = None,
        deadline_s: float | None = None,
        max_cost_usd: float | None = None,
        idempotency_key: str | None = None,
    ) -> Batch:
        """Uploads a file of requests (OpenAI's batch format, one a line) and starts it.

        ``endpoint=None`` takes the first line's. ``deadline_s``, from now, and ``max_cost_usd`` are for all lines
        together: then they are placed by a plan of the whole.
        """
        endpoint = endpoint or wire.endpoint_of(Path(path))
        limits: dict[str, Any] = {"deadline_s": deadline_s, "max_cost_usd": max_cost_usd}
        return self.create_batch(self.upload(path), endpoint, **limits, idempotency_key=idempotency_key)

    def upload(self, path: str | Path) -> str:
        """Uploads a batch's input; answers the file's id."""
        return str(json.loads(self._http.upload(Path(path), "batch").body)["id"])

    def create_batch(
        self,
        file_id: str,
        endpoint: str,
        *,
        deadline_s: float | None = None,
        max_cost_usd: float | None = None,
        idempotency_key: str | None = None,
    ) -> Batch:
        body = wire.batch_body(file_id, endpoint, deadline_s, max_cost_usd)
        call = wire.create("/v1/batches", body, idempotency_key)
        return Batch(self._http, _json(self._http, call))

    def get_batch(self, batch_id: str) -> Batch:
        return Batch(self._http, _json(self._http, Call("GET", f"/v1/batches/{batch_id}")))

    def batches(self, *, limit: int | None = None) -> Iterator[dict[str, Any]]:
        """Batches, newest first, at most ``limit``."""
        pages = wire.Pages("/v1/batches", limit, mark="after")
        while pages.more:
            yield from pages.read(_json(self._http, pages.call()))

    def content(self, file_id: str) -> Iterator[bytes]:
        """A file's bytes, as they come."""
        return _content(self._http, file_id)

    def job(self, job_id: str) -> Job:
        """A job by its id; nothing is sent."""
        return Job(self._http, job_id)

    def jobs(self, *, limit: int | None = None) -> Iterator[dict[str, Any]]:
        """Jobs, newest first, at most ``limit``."""
        pages = wire.Pages("/v1/jobs", limit)
        while pages.more:
            yield from pages.read(_json(self._http, pages.call()))

    def dead_letters(self, *, limit: int | None = None, **filters: str | float | None) -> Iterator[dict[str, Any]]:
        """Parked jobs, newest first; ``filters`` as ``GET /v1/dead-letters`` takes them."""
        pages = wire.dead_letters(limit, filters)
        while pages.more:
            yield from pages.read(_json(self._http, pages.call()))

    def dead_letter(self, job_id: str) -> dict[str, Any]:
        """One parked job: why it is there, and every attempt."""
        return _json(self._http, Call("GET", f"/v1/dead-letters/{job_id}"))

    def replay(self, job_id: str, *, policy: str | None = None) -> dict[str, Any]:
        """The parked job lines up again, under ``policy`` from now on; the answer is the job."""
        return _json(self._http, wire.replay(job_id, policy))

    def drop(self, job_id: str) -> dict[str, Any]:
        """The parked job goes for good."""
        return _json(self._http, Call("DELETE", f"/v1/dead-letters/{job_id}"))

    def webhook_deliveries(self, *, limit: int | None = None, **filters: str | None) -> Iterator[dict[str, Any]]:
        """Which events reached which webhook, newest first; ``filters``: ``state``, ``webhook``."""
        pages = wire.webhook_deliveries(limit, filters)
        while pages.more:
            yield from pages.read(_json(self._http, pages.call()))

    def replay_webhook(self, delivery_id: str) -> dict[str, Any]:
        """The event is sent again, with the id that it has; the answer is the delivery."""
        return _json(self._http, wire.replay_webhook(delivery_id))

    def route(self, request: Request, *, model: str | None = None, **params: Any) -> dict[str, Any]:
        """Where a prompt, or a whole body, would go, why not elsewhere, when it would be done, and what it would
        cost, as ``POST /v1/route`` shows it. Nothing runs."""
        return _json(self._http, wire.route(self._body(request, model, params)))

    def models(self) -> list[dict[str, Any]]:
        return list(_json(self._http, Call("GET", "/v1/models"))["data"])

    def policy(self, policy_hash: str) -> dict[str, Any]:
        """The policies, rules, privacy and places that decisions with this hash were made under."""
        return _json(self._http, Call("GET", f"/v1/policies/{policy_hash}"))

    def usage(
        self, *, group_by: Sequence[str] = (), limit: int | None = None, **filters: str | int | None
    ) -> Iterator[dict[str, Any]]:
        """Requests and tokens, as ``GET /v1/usage`` shows them, all pages; ``filters`` as there."""
        yield from self._spending("/v1/usage", group_by, limit, filters)

    def costs(
        self, *, group_by: Sequence[str] = (), limit: int | None = None, **filters: str | int | None
    ) -> Iterator[dict[str, Any]]:
        """What it cost, as ``GET /v1/costs`` shows it, all pages; ``filters`` as there."""
        yield from self._spending("/v1/costs", group_by, limit, filters)

    def costs_summary(self, **filters: str | int | None) -> dict[str, Any]:
        """Tiers with the hours of their workers, savings, and the month's forecast."""
        query = {name: str(value) for name, value in filters.items() if value is not None}
        return _json(self._http, Call("GET", "/v1/costs/summary", query=query))

    def _spending(
        self, path: str, group_by: Sequence[str], limit: int | None, filters: Mapping[str, Any]
    ) -> Iterator[dict[str, Any]]:
        pages = wire.spending(path, limit, group_by, filters)
        while pages.more:
            yield from pages.read(_json(self._http, pages.call()))

    def budgets(self) -> list[dict[str, Any]]:
        """What budgets there are, and what is left of them, as ``GET /v1/budgets`` shows them."""
        found: list[dict[str, Any]] = (_json(self._http, Call("GET", "/v1/budgets")))["data"]
        return found

    def status(self) -> dict[str, Any]:
        """The tiers with their deployments, workers and slots, as ``GET /v1/tiers`` shows them."""
        return _json(self._http, Call("GET", "/v1/tiers"))

    def workers(self) -> list[dict[str, Any]]:
        """The workers that live, as ``GET /v1/workers`` shows them."""
        found: list[dict[str, Any]] = (_json(self._http, Call("GET", "/v1/workers")))["data"]
        return found

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _model(self) -> str:
        if self._first_model is None:
            self._first_model = wire.first_model(self.models())
        return self._first_model

    def _body(self, request: Request, model: str | None, params: Mapping[str, Any]) -> dict[str, Any]:
        if isinstance(request, Mapping):
            named = model or request.get("model") or self._model()
            return {**request, **params, "model": named}
        return wire.chat_body(request, model or self._model(), params)

    def _ask(self, endpoint: str, body: dict[str, Any]) -> Answer:
        response = self._http.send(wire.create(endpoint, body))
        return wire.answer(response.body, response.headers)

    def _pieces(self, body: dict[str, Any]) -> Iterator[Piece]:
        decoder = streams.ServerSentEvents()
        with self._http.stream(wire.create(wire.CHAT, {**body, "stream": True})) as chunks:
            for chunk in chunks:
                for _, data in decoder.feed(chunk):
                    if data == streams.DONE:
                        return
                    yield streams.piece(data)
        raise streams.cut_off()

    def _mapped(self, index: int, request: Request, model: str | None, params: Mapping[str, Any]) -> Mapped:
        try:
            body = self._body(request, model, params)
            return Mapped(index, request, self._ask(wire.endpoint_for(body), body), None)
        except FabricError as error:
            return Mapped(index, request, None, error)


def _json(http: Http, call: Call) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(http.send(call).body)
    return values


def _content(http: Http, file_id: str) -> Iterator[bytes]:
    with http.stream(Call("GET", f"/v1/files/{file_id}/content")) as chunks:
        yield from chunks
