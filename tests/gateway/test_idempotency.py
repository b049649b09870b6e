"""``Idempotency-Key``: the same request sent twice is one job."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import openai
import pytest

from fabric.contracts.secret import Secrets
from fabric.gateway import GatewaySettings
from fabric.store import Store, reads, transitions

if TYPE_CHECKING:
    import httpx

    from tests.gateway.conftest import Served, Worker

CHAT = "/v1/chat/completions"
KEY = {"idempotency-key": "one"}
Meanwhile = Callable[..., Future[Any]]


def chat(text: str = "hi", **fields: Any) -> dict[str, Any]:
    return {"model": "small", "messages": [{"role": "user", "content": text}], **fields}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
class TestTheSameRequest:
    def test_after_it_ended_has_the_same_answer(
        self, worker: Worker, http: httpx.Client, store: Store, stream: bool
    ) -> None:
        first, second = (http.post(CHAT, json=chat(stream=stream), headers=KEY) for _ in range(2))
        assert second.status_code == 200
        assert (second.content, second.headers["x-fabric-job-id"]) == (
            first.content,
            first.headers["x-fabric-job-id"],
        )
        assert len(store(reads.open_jobs("default", before_ms=None, limit=9))) == 1

    def test_while_it_runs_waits_for_the_same_answer(
        self, by_hand: Worker, http: httpx.Client, meanwhile: Meanwhile, gateway: Served, eventually: Any, stream: bool
    ) -> None:
        waiting = [meanwhile(http.post, CHAT, json=chat(stream=stream), headers=KEY) for _ in range(3)]
        job = by_hand.next()
        eventually(lambda: gateway.requests == 3)
        if stream:
            job.say("one ", "two")
        job.succeed("one two")
        answers = [future.result() for future in waiting]
        assert {answer.headers["x-fabric-job-id"] for answer in answers} == {job.spec.id}
        assert len({answer.text for answer in answers}) == 1

    def test_that_failed_fails_again(self, worker: Worker, http: httpx.Client, stream: bool) -> None:
        worker.act = lambda job: job.fail()
        answers = [http.post(CHAT, json=chat(stream=stream), headers=KEY) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [502, 502]
        assert answers[0].json() == answers[1].json()

    def test_of_a_job_that_was_replayed_has_its_last_answer(
        self, by_hand: Worker, http: httpx.Client, meanwhile: Meanwhile, store: Store, stream: bool
    ) -> None:
        failed = meanwhile(http.post, CHAT, json=chat(stream=stream), headers=KEY)
        by_hand.next().park()
        job_id = failed.result().headers["x-fabric-job-id"]
        http.post(f"/v1/dead-letters/{job_id}/replay")
        while_it_runs = meanwhile(http.post, CHAT, json=chat(stream=stream), headers=KEY)
        job = by_hand.next()
        if stream:
            job.say("better")
        job.succeed("better")
        for answer in (while_it_runs.result(), http.post(CHAT, json=chat(stream=stream), headers=KEY)):
            assert (answer.status_code, answer.headers["x-fabric-job-id"]) == (200, job_id)
            assert "better" in answer.text


class TestKeys:
    def test_another_request_is_a_conflict(self, worker: Worker, gateway: Served) -> None:
        with gateway.openai(max_retries=2) as client:  # the SDK repeats a 409 unless it is told not to
            client.chat.completions.create(**chat("one"), extra_headers=KEY)
            with pytest.raises(openai.ConflictError) as refused:
                client.chat.completions.create(**chat("two"), extra_headers=KEY)
        assert refused.value.code == "idempotency_conflict"
        assert refused.value.response.headers["x-should-retry"] == "false"

    @pytest.mark.parametrize(
        "change",
        [{"stream": True}, {"fabric": {"tags": ["a"]}}, {"temperature": 0.5}, {"model": "org/large"}],
    )
    def test_everything_counts(self, worker: Worker, http: httpx.Client, change: dict[str, Any]) -> None:
        assert http.post(CHAT, json=chat(), headers=KEY).status_code == 200
        assert http.post(CHAT, json=chat() | change, headers=KEY).status_code == 409

    def test_but_how_it_is_written(self, worker: Worker, http: httpx.Client) -> None:
        body = b'{"messages": [ {"content":"hi", "role":"user"} ],\n "model": "small", "temperature": null}'
        http.post(CHAT, json=chat(), headers=KEY)
        again = http.post(CHAT, content=body, headers={**KEY, "content-type": "application/json"})
        assert again.status_code == 200

    def test_what_is_remembered_cant_be_checked_without_the_secret(
        self, worker: Worker, http: httpx.Client, settings: GatewaySettings, serve: Callable[..., Served]
    ) -> None:
        assert http.post(CHAT, json=chat(), headers=KEY).status_code == 200
        same, other = serve(settings), serve(replace(settings, secrets=Secrets(["x" * 32])))
        with same.http() as knowing, other.http() as guessing:
            assert knowing.post(CHAT, json=chat(), headers=KEY).status_code == 200
            assert guessing.post(CHAT, json=chat(), headers=KEY).status_code == 409

    def test_another_key_is_another_job(self, worker: Worker, http: httpx.Client) -> None:
        jobs = {
            http.post(CHAT, json=chat(), headers={"idempotency-key": key}).headers["x-fabric-job-id"] for key in "ab"
        }
        assert len(jobs) == 2

    @pytest.mark.parametrize("key", ["", "x" * 256, "caf\u00e9"])
    def test_a_wrong_key_is_refused(self, http: httpx.Client, key: str) -> None:
        for path, body in ((CHAT, chat()), ("/v1/jobs", {}), ("/v1/batches", {})):
            refused = http.post(path, json=body, headers={b"idempotency-key": key.encode("latin-1")})
            assert refused.status_code == 400
            assert refused.json()["error"]["param"] == "Idempotency-Key"

    def test_an_answer_that_is_not_kept_any_more(self, worker: Worker, http: httpx.Client, store: Store) -> None:
        job_id = http.post(CHAT, json=chat(), headers=KEY).headers["x-fabric-job-id"]
        store.redis.delete(f"fabric:job:{job_id}")
        refused = http.post(CHAT, json=chat(), headers=KEY)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "answer_expired")

    def test_a_job_submitted_twice(self, by_hand: Worker, http: httpx.Client) -> None:
        body = {"endpoint": CHAT, "body": chat()}
        first, second = (http.post("/v1/jobs", json=body, headers=KEY) for _ in range(2))
        assert (first.status_code, second.status_code) == (202, 202)
        assert first.json()["id"] == second.json()["id"]
        other = http.post("/v1/jobs", json={"endpoint": CHAT, "body": chat("two")}, headers=KEY)
        assert other.status_code == 409
        by_hand.store(transitions.cancel([first.json()["id"]]))
