"""A gateway that is stopped: what can end in time does, the rest is told so. Jobs go on either way."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import openai
import pytest

from fabric.contracts.job import JobState

if TYPE_CHECKING:
    from fabric.gateway import GatewaySettings
    from tests.gateway.conftest import Served, Worker

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "small", "messages": [{"role": "user", "content": "hi"}]}
Meanwhile = Callable[..., Future[Any]]
Serve = Callable[..., Served] if TYPE_CHECKING else Any


def test_requests_may_end(
    by_hand: Worker, settings: GatewaySettings, serve: Serve, meanwhile: Meanwhile, eventually: Any
) -> None:
    gateway = serve(settings, drain_s=60)
    with gateway.http() as http:
        waiting = meanwhile(http.post, CHAT, json=BODY)
        job = by_hand.next()
        stopping = threading.Thread(target=gateway.stop)
        stopping.start()
        eventually(lambda: not gateway.server.servers[0].is_serving())
        job.succeed()
        assert waiting.result().status_code == 200
        stopping.join()


def test_a_request_that_takes_longer_is_told(
    by_hand: Worker, settings: GatewaySettings, serve: Serve, meanwhile: Meanwhile, state: Any
) -> None:
    gateway = serve(settings, drain_s=1)
    with gateway.http() as http:
        waiting = meanwhile(http.post, CHAT, json=BODY)
        job = by_hand.next()
        gateway.stop()
        answer = waiting.result()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
    assert answer.headers["retry-after"] == "1"
    assert state(job.spec.id) is JobState.RUNNING
    assert not by_hand.must_stop(job)
    job.succeed()


def test_so_is_a_stream(
    by_hand: Worker, settings: GatewaySettings, serve: Serve, meanwhile: Meanwhile, state: Any
) -> None:
    gateway = serve(settings, drain_s=1)
    with gateway.openai(max_retries=0) as client:
        begun = meanwhile(client.chat.completions.create, **BODY, stream=True)
        job = by_hand.next()
        job.say("one")
        stream = iter(begun.result())
        assert next(stream).choices[0].delta.content == "one"
        gateway.stop()
        with pytest.raises(openai.APIError) as told:
            list(stream)
    assert told.value.code == "unavailable"
    assert state(job.spec.id) is JobState.RUNNING
    assert not by_hand.must_stop(job)
    job.succeed()


def test_a_reader_of_events_goes_on_at_the_next_gateway(
    by_hand: Worker, settings: GatewaySettings, serve: Serve, meanwhile: Meanwhile, eventually: Any
) -> None:
    gateway = serve(settings, drain_s=1)
    with gateway.http() as http:
        job_id = http.post("/v1/jobs", json={"endpoint": CHAT, "body": BODY}).json()["id"]
        job = by_hand.next()
        listening = meanwhile(http.get, f"/v1/jobs/{job_id}/events")
        eventually(lambda: gateway.inside.listener.following)
        gateway.stop()
        first = listening.result().text
    job.succeed()
    last = max(int(line.removeprefix("id: ")) for line in first.splitlines() if line.startswith("id: "))
    with serve(settings).http() as http:
        rest = http.get(f"/v1/jobs/{job_id}/events", headers={"last-event-id": str(last)}).text
    assert (last, rest.count("data: "), '"succeeded"' in rest) == (3, 1, True)
