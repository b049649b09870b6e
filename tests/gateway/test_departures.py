"""Clients that go away: their jobs are stopped wherever they are."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from fabric.contracts.job import JobState
from fabric.store import Store, reads

if TYPE_CHECKING:
    from fabric.gateway import GatewaySettings
    from tests.conftest import Valkey
    from tests.gateway.conftest import Served, Worker

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "small", "messages": [{"role": "user", "content": "hi"}]}
KEY = {"idempotency-key": "k"}
BOTH = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
Look = Callable[[str], JobState | None]
Eventually = Callable[[Callable[[], Any]], Any]
Meanwhile = Callable[..., Future[Any]]


@contextmanager
def asking(gateway: Served, body: dict[str, Any], headers: dict[str, str] | None = None) -> Iterator[None]:
    """A client that sends a request and hangs up at the end of the block."""
    address = urlsplit(gateway.url)
    content = json.dumps(body).encode()
    told = {"host": "x", "content-type": "application/json", "content-length": str(len(content)), **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in told.items())
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(f"POST {CHAT} HTTP/1.1\r\n{head}\r\n".encode() + content)
        yield


def only_job(store: Store) -> str | None:
    return next(iter(store(reads.open_jobs("default", before_ms=None, limit=2))), None)


@BOTH
def test_a_running_job_is_stopped_in_its_engine(by_hand: Worker, gateway: Served, stream: bool) -> None:
    with asking(gateway, {**BODY, "stream": stream}):
        job = by_hand.next()
    assert by_hand.stopped() == job.spec.id
    job.cancelled()


@BOTH
def test_a_waiting_job_ends(gateway: Served, stream: bool, store: Store, state: Look, eventually: Eventually) -> None:
    with asking(gateway, {**BODY, "stream": stream}):
        job_id = eventually(lambda: only_job(store))
    eventually(lambda: state(job_id) is JobState.CANCELLED)


def test_a_stream_that_has_begun(by_hand: Worker, client: openai.OpenAI, meanwhile: Meanwhile) -> None:
    begun = meanwhile(client.chat.completions.create, **BODY, stream=True)
    job = by_hand.next()
    job.say("one")
    begun.result().close()
    assert by_hand.stopped() == job.spec.id


def test_a_client_that_leaves_before_its_body_is_there(gateway: Served, http: httpx.Client, store: Store) -> None:
    address = urlsplit(gateway.url)
    with socket.create_connection((address.hostname, address.port)) as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{{"
        connection.sendall(head.encode())
    assert http.get("/health/live").status_code == 200
    assert only_job(store) is None


def test_one_that_leaves_while_its_job_is_being_accepted(
    gateway: Served, valkey: Valkey, store: Store, state: Look, eventually: Eventually
) -> None:
    assert valkey.process is not None
    valkey.process.send_signal(signal.SIGSTOP)
    try:
        with asking(gateway, BODY):
            eventually(lambda: gateway.requests)
    finally:
        valkey.process.send_signal(signal.SIGCONT)
    job_id = eventually(lambda: only_job(store))
    eventually(lambda: state(job_id) is JobState.CANCELLED)


def test_a_cancellation_waits_for_a_store_that_is_away(
    by_hand: Worker, gateway: Served, valkey: Valkey, eventually: Eventually
) -> None:
    with asking(gateway, BODY):
        job = by_hand.next()
        valkey.kill()
    eventually(lambda: not gateway.requests)
    valkey.start()
    eventually(lambda: by_hand.must_stop(job))


class TestWithAKey:
    """Who gave an Idempotency-Key may come back."""

    def test_who_does_not_come_back_has_left(self, by_hand: Worker, gateway: Served) -> None:
        with asking(gateway, BODY, KEY):
            job = by_hand.next()
        assert by_hand.stopped() == job.spec.id

    @BOTH
    def test_who_comes_back_gets_the_same_job(
        self,
        by_hand: Worker,
        settings: GatewaySettings,
        serve: Callable[[GatewaySettings], Served],
        meanwhile: Meanwhile,
        eventually: Eventually,
        stream: bool,
    ) -> None:
        gateway = serve(replace(settings, return_s=3600))
        body = {**BODY, "stream": stream}
        with asking(gateway, body, KEY):
            job = by_hand.next()
        eventually(lambda: gateway.inside.waiters.busy)
        with gateway.http() as http:
            returned = meanwhile(http.post, CHAT, json=body, headers=KEY)
            eventually(lambda: gateway.requests)
            assert not by_hand.must_stop(job)
            if stream:
                job.say("tok")
            job.succeed()
            answer = returned.result()
        assert (answer.status_code, answer.headers["x-fabric-job-id"]) == (200, job.spec.id)

    def test_one_of_two_that_wait_may_go(
        self, by_hand: Worker, gateway: Served, http: httpx.Client, meanwhile: Meanwhile, eventually: Eventually
    ) -> None:
        with asking(gateway, BODY, KEY):
            job = by_hand.next()
            waiting = meanwhile(http.post, CHAT, json=BODY, headers=KEY)
            eventually(lambda: gateway.requests == 2)
        eventually(lambda: gateway.requests == 1 and not gateway.inside.waiters.busy)
        assert not by_hand.must_stop(job)
        job.succeed()
        assert waiting.result().status_code == 200

    def test_also_through_another_gateway(
        self,
        by_hand: Worker,
        gateway: Served,
        settings: GatewaySettings,
        serve: Callable[[GatewaySettings], Served],
        meanwhile: Meanwhile,
        eventually: Eventually,
    ) -> None:
        with serve(settings).http() as other:
            with asking(gateway, BODY, KEY):
                job = by_hand.next()
                waiting = meanwhile(other.post, CHAT, json=BODY, headers=KEY)
                eventually(lambda: len(by_hand.store(reads.watchers(job.spec.id))) == 2)
            eventually(lambda: not gateway.requests and not gateway.inside.waiters.busy)
            assert not by_hand.must_stop(job)
            job.succeed()
            assert waiting.result().status_code == 200
