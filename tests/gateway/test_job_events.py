"""``GET /v1/jobs/{id}/events``: every event once, in order, resumable."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from fabric.client import Client
from fabric.contracts.ids import new_id
from fabric.contracts.job import JobSpec
from fabric.store import Store, transitions
from fabric.store.transitions import NewJob

if TYPE_CHECKING:
    from fabric.gateway import GatewaySettings
    from tests.gateway.conftest import Served, Worker

CHAT = "/v1/chat/completions"


def submit(http: httpx.Client, *, stream: bool = False) -> str:
    body = {"model": "small", "messages": [{"role": "user", "content": "hi"}], "stream": stream}
    return str(http.post("/v1/jobs", json={"endpoint": CHAT, "body": body}).json()["id"])


def events(http: httpx.Client, job_id: str, after: int | None = None) -> list[tuple[int, dict[str, Any]]]:
    headers = {} if after is None else {"last-event-id": str(after)}
    answer = http.get(f"/v1/jobs/{job_id}/events", headers=headers)
    assert answer.status_code == 200, answer.text
    found = []
    for frame in answer.text.split("\n\n"):
        if frame and not frame.startswith(":"):
            identifier, data = frame.split("\n")
            found.append((int(identifier.removeprefix("id: ")), json.loads(data.removeprefix("data: "))))
    return found


def test_from_the_first_to_the_last(worker: Worker, http: httpx.Client) -> None:
    job_id = submit(http)
    told = events(http, job_id)
    assert [number for number, _ in told] == [1, 2, 3, 4]
    assert [event["type"] for _, event in told] == ["queued", "dispatched", "running", "succeeded"]
    assert told[-1][1]["attempt"]["tier"] == "cpu"


def test_a_streamed_jobs_tokens_are_among_them(worker: Worker, http: httpx.Client) -> None:
    told = events(http, submit(http, stream=True))
    tokens = [event["chunk"]["choices"][0]["delta"]["content"] for _, event in told if event["type"] == "token"]
    assert "".join(tokens) == "hi"


def test_they_come_as_they_happen(
    by_hand: Worker, http: httpx.Client, meanwhile: Callable[..., Future[Any]], eventually: Any, gateway: Served
) -> None:
    job_id = submit(http, stream=True)
    job = by_hand.next()
    listening = [meanwhile(events, http, job_id) for _ in range(2)]
    eventually(lambda: gateway.requests == 2)
    job.say("a")
    job.say("b", "c")
    job.succeed()
    first, second = (future.result() for future in listening)
    assert first == second
    assert [event["type"] for _, event in first] == [
        *("queued", "dispatched", "running"),
        *("token",) * 3,
        "succeeded",
    ]


@pytest.mark.parametrize("after", [0, 1, 3, 4])
def test_resumed_behind_any_of_them(worker: Worker, http: httpx.Client, after: int) -> None:
    job_id = submit(http)
    every = events(http, job_id)
    assert events(http, job_id, after) == every[after:]


@pytest.mark.parametrize("mark", ["5", "99999999999999999999", "-1", "x", "1.5", "²"])
def test_behind_none_of_them(worker: Worker, http: httpx.Client, mark: str) -> None:
    job_id = submit(http)
    events(http, job_id)
    refused = http.get(f"/v1/jobs/{job_id}/events", headers={b"last-event-id": mark.encode()})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "Last-Event-ID")


def test_a_replayed_job_goes_on_where_it_ended(
    by_hand: Worker, http: httpx.Client, meanwhile: Callable[..., Future[Any]]
) -> None:
    job_id = submit(http)
    by_hand.next().park()
    assert events(http, job_id)[-1][1]["type"] == "dead"
    http.post(f"/v1/dead-letters/{job_id}/replay")
    job = by_hand.next()
    listening = meanwhile(events, http, job_id)
    job.succeed()
    types = [event["type"] for _, event in listening.result()]
    assert types == ["queued", "dispatched", "running", "dead", "queued", "dispatched", "running", "succeeded"]


def test_silence_is_filled(
    by_hand: Worker, settings: GatewaySettings, serve: Callable[[GatewaySettings], Served]
) -> None:
    with serve(replace(settings, keep_alive_s=0.05)).http() as http:
        job_id = submit(http)
        job = by_hand.next()
        with http.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
            assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
            for line in answer.iter_lines():
                if line == ": keep-alive":
                    break
            job.succeed()


def test_a_line_of_a_batch_has_none(http: httpx.Client, store: Store) -> None:
    spec = JobSpec(id=new_id("job"), endpoint=CHAT, model="small", batch_id=new_id("batch"), line_no=1)
    store(transitions.accept([NewJob(spec, b"")]))
    assert http.get(f"/v1/jobs/{spec.id}/events").status_code == 409


def test_a_listener_that_leaves_does_not_stop_the_job(by_hand: Worker, http: httpx.Client, gateway: Served) -> None:
    job_id = submit(http)
    job = by_hand.next()
    with http.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
        next(answer.iter_bytes())
    assert not by_hand.must_stop(job)
    job.succeed()
    assert http.get(f"/v1/jobs/{job_id}").json()["state"] == "succeeded"


def test_the_fabrics_own_client_reads_them(worker: Worker, gateway: Served) -> None:
    with Client(gateway.url) as client:
        job = client.submit("hello", model="small", stream=True)
        assert "".join(event.text for event in job.events()) == "hello"
        whole = client.submit("hello", model="small")
        assert whole.result(timeout=60).text == "hello"
        assert client.chat("hello", model="small").text == "hello"
        assert "".join(piece.text for piece in client.chat("hello", model="small", stream=True)) == "hello"
        assert [mapped.text for mapped in sorted(client.map(["a", "b"], model="small"), key=lambda m: m.index)] == [
            *"ab"
        ]
        assert {job["state"] for job in client.jobs()} == {"succeeded"}
        assert client.status()["data"][0]["tier"] == "cpu"
