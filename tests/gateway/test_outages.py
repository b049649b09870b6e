"""The store dies under requests that wait: they wait on, and get their answers when it is back."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import openai
import pytest

from fabric.client import AsyncClient

if TYPE_CHECKING:
    import httpx

    from tests.conftest import Valkey
    from tests.gateway.conftest import Served, Worker

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "small", "messages": [{"role": "user", "content": "hi"}]}
Meanwhile = Callable[..., Future[Any]]


def crash(valkey: Valkey) -> None:
    """Killed and started again: what was answered before is on its disk."""
    valkey.kill()
    valkey.start()


class TestWaitingRequests:
    def test_a_job_that_ends_after_it(
        self, by_hand: Worker, http: httpx.Client, valkey: Valkey, meanwhile: Meanwhile
    ) -> None:
        waiting = [meanwhile(http.post, CHAT, json=BODY) for _ in range(3)]
        jobs = [by_hand.next() for _ in waiting]
        crash(valkey)
        for job in jobs:
            job.succeed("still here")
        for answer in (future.result() for future in waiting):
            assert answer.json()["choices"][0]["message"]["content"] == "still here"

    def test_a_job_that_ends_before_the_gateway_hears_again(
        self, by_hand: Worker, http: httpx.Client, valkey: Valkey, meanwhile: Meanwhile, gateway: Served
    ) -> None:
        """What was published while nobody listened is read from the job's log."""
        waiting = meanwhile(http.post, CHAT, json=BODY)
        job = by_hand.next()
        for connection in by_hand.store.redis.client_list(_type="pubsub"):
            by_hand.store.redis.client_kill_filter(_id=connection["id"])
        job.succeed()
        assert waiting.result().status_code == 200
        gateway.until_ready()

    def test_a_stream_goes_on_without_a_gap(
        self, by_hand: Worker, client: openai.OpenAI, valkey: Valkey, meanwhile: Meanwhile
    ) -> None:
        begun = meanwhile(client.chat.completions.create, **BODY, stream=True)
        job = by_hand.next()
        job.say("one ", "two ")
        stream = begun.result()
        crash(valkey)
        job.say("three ", "four")
        job.succeed()
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "one two three four"

    def test_events_too(self, by_hand: Worker, http: httpx.Client, valkey: Valkey) -> None:
        job_id = http.post("/v1/jobs", json={"endpoint": CHAT, "body": BODY}).json()["id"]
        job = by_hand.next()
        with http.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
            lines = answer.iter_lines()
            numbers = [next(lines)]
            crash(valkey)
            job.succeed()
            numbers += [line for line in lines if line.startswith("id: ")]
        assert numbers == ["id: 1", "id: 2", "id: 3", "id: 4"]

    def test_a_store_that_lost_everything(
        self, by_hand: Worker, http: httpx.Client, valkey: Valkey, meanwhile: Meanwhile
    ) -> None:
        waiting = meanwhile(http.post, CHAT, json=BODY)
        by_hand.next()
        by_hand.store.redis.flushall()
        crash(valkey)
        answer = waiting.result()
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")


class TestNewRequests:
    @pytest.mark.parametrize(
        ("method", "path", "body"),
        [
            ("POST", CHAT, BODY),
            ("POST", CHAT, {**BODY, "stream": True}),
            ("POST", "/v1/jobs", {"endpoint": CHAT, "body": BODY}),
            ("GET", "/v1/jobs", None),
            ("GET", "/v1/jobs/job_00000000000000000000000000", None),
            ("GET", "/v1/tiers", None),
            ("GET", "/v1/dead-letters", None),
        ],
    )
    def test_a_store_that_is_away_is_a_503(
        self, http: httpx.Client, valkey: Valkey, gateway: Served, method: str, path: str, body: Any
    ) -> None:
        valkey.kill()
        try:
            answer = http.request(method, path, json=body)
        finally:
            valkey.start()
        gateway.until_ready()
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
        assert int(answer.headers["retry-after"]) >= 1

    @pytest.mark.parametrize("path", [CHAT, "/v1/jobs"])
    def test_so_is_one_that_does_not_answer_and_soon(self, http: httpx.Client, valkey: Valkey, path: str) -> None:
        assert valkey.process is not None
        valkey.process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        try:
            answer = http.post(path, json=BODY if path == CHAT else {"endpoint": CHAT, "body": BODY})
        finally:
            valkey.process.send_signal(signal.SIGCONT)
        assert answer.status_code == 503
        assert time.monotonic() - began < 30  # not for as long as the store is away

    def test_models_need_no_store(self, http: httpx.Client, valkey: Valkey, gateway: Served) -> None:
        valkey.kill()
        try:
            assert http.get("/v1/models").status_code == 200
        finally:
            valkey.start()
        gateway.until_ready()

    async def test_the_fabrics_client_gets_through(
        self, worker: Worker, gateway: Served, valkey: Valkey, meanwhile: Meanwhile
    ) -> None:
        valkey.kill()
        starting = meanwhile(valkey.start)
        async with AsyncClient(gateway.url, retries=20) as client:
            assert (await client.chat("hello", model="small")).text == "hello"
        starting.result()
