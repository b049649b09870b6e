"""Whatever the fabric sends to Redis: no text of a prompt, of an answer, or of what redaction took out."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import pytest
import redis

from fabric.contracts.catalog import PrivacyRule, PrivacyRules
from fabric.contracts.ids import new_id
from fabric.contracts.job import JobSpec, JobState
from fabric.contracts.job_seals import HomeSeals
from fabric.recorder import Recorder
from fabric.store import Store, reads, transitions

if TYPE_CHECKING:
    from tests.gateway.conftest import Running, Served, Worker

CHAT = "/v1/chat/completions"
PROMPT, ANSWER = "canary-in-the-prompt", "canary-in-the-answer"
BODY = {"model": "small", "messages": [{"role": "user", "content": PROMPT}]}


@pytest.fixture
def sent(store: Store) -> Iterator[Callable[[], bytes]]:
    """All that has come to the server since, as the server tells it."""
    lines: list[bytes] = []
    seen = threading.Event()
    connection = redis.Redis(connection_pool=store.redis.connection_pool).connection_pool.make_connection()
    connection.connect()
    connection.send_command("MONITOR")
    assert connection.read_response() == b"OK"

    def listen() -> None:
        with contextlib.suppress(redis.RedisError, OSError, ValueError):
            while True:
                lines.append(connection.read_response(timeout=None))
                if b"that-was-all" in lines[-1]:
                    seen.set()

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()

    def told() -> bytes:
        seen.clear()
        store.redis.echo("that-was-all")
        assert seen.wait(30)
        return b"\n".join(lines)

    yield told
    connection._sock.shutdown(2)
    thread.join(30)
    connection.disconnect()


def kept(store: Store) -> bytes:
    """All keys, whole."""
    return b"\n".join(store.redis.dump(key) or b"" for key in store.redis.scan_iter(count=1_000))


def is_sealed(told: bytes) -> None:
    assert b"fabric:payload:" in told or b"EVALSHA" in told.upper()
    for canary in (PROMPT, ANSWER, "ada@example.com"):
        assert canary.encode() not in told
        # As a part of words that were cut.
        assert canary.encode()[:-3] not in told


def test_an_answer_and_its_prompt(
    http: httpx.Client, store: Store, by_hand: Worker, sent: Any, meanwhile: Callable[..., Future[Any]]
) -> None:
    asking = meanwhile(lambda: http.post(CHAT, json=BODY))
    job = by_hand.next()
    assert job.body["messages"][0]["content"] == PROMPT
    job.succeed(ANSWER)
    answer = asking.result()
    assert answer.json()["choices"][0]["message"]["content"] == ANSWER
    shown = http.get(f"/v1/jobs/{job.spec.id}").json()
    assert shown["result"]["choices"][0]["message"]["content"] == ANSWER
    is_sealed(kept(store) + sent())


def test_a_stream_and_its_log(
    http: httpx.Client, store: Store, by_hand: Worker, sent: Any, meanwhile: Callable[..., Future[Any]]
) -> None:
    asking = meanwhile(lambda: http.post(CHAT, json=BODY | {"stream": True}))
    job = by_hand.next()
    job.say(ANSWER, "\n", ANSWER)
    job.succeed()
    assert asking.result().text.count(ANSWER) == 2
    told = http.get(f"/v1/jobs/{job.spec.id}/events").text
    assert told.count(ANSWER) == 2
    again = http.get(f"/v1/jobs/{job.spec.id}/events", headers={"Last-Event-ID": "4"}).text
    assert again.count(ANSWER) == 1
    shown = http.get(f"/v1/jobs/{job.spec.id}").json()
    assert shown["result"]["choices"][0]["message"]["content"] == f"{ANSWER}\n{ANSWER}"
    is_sealed(kept(store) + sent())


def test_a_dead_letter_that_runs_again(http: httpx.Client, store: Store, by_hand: Worker, sent: Any) -> None:
    job_id = http.post("/v1/jobs", json={"endpoint": CHAT, "body": BODY}).json()["id"]
    by_hand.next().park()
    before = store(reads.payload(job_id))
    assert http.post(f"/v1/dead-letters/{job_id}/replay").status_code == 200
    assert store(reads.payload(job_id)) != before
    again = by_hand.next()
    assert again.body["messages"][0]["content"] == PROMPT
    again.succeed(ANSWER)
    is_sealed(kept(store) + sent())


class TestAlteredInTheStore:
    """Who can write there, but hasn't the secret, gets nobody to read what was meant for somebody else."""

    def test_an_answer_that_was_put_under_another_tenants_job(
        self, http: httpx.Client, store: Store, by_hand: Worker
    ) -> None:
        jobs: list[Running] = []
        for _ in range(2):
            http.post("/v1/jobs", json={"endpoint": CHAT, "body": BODY})
            jobs.append(by_hand.next())
            jobs[-1].succeed(ANSWER)
        first, second = (f"fabric:job:{job.spec.id}" for job in jobs)
        store.redis.hset(second, "result", store.redis.hget(first, "result"))
        refused = http.get(f"/v1/jobs/{jobs[1].spec.id}")
        assert (refused.status_code, refused.json()["error"]["code"]) == (500, "broken_seal")
        spec = orjson.loads(store.redis.hget(first, "spec"))
        store.redis.hset(first, "spec", orjson.dumps(spec | {"tenant": "else"}))
        assert http.get(f"/v1/jobs/{jobs[0].spec.id}").status_code == 404

    def test_a_stream_that_is_spoilt_ends_with_an_error(
        self, http: httpx.Client, store: Store, by_hand: Worker, meanwhile: Callable[..., Future[Any]]
    ) -> None:
        asking = meanwhile(lambda: http.post(CHAT, json=BODY | {"stream": True}))
        job = by_hand.next()
        job.say(ANSWER)
        piece = transitions.Piece(job.spec.id, job.claimed.attempt, b"\x03" + bytes(120))
        assert store(transitions.emit([piece])) == [1]
        text = asking.result().text
        assert "broken_seal" in text
        assert "[DONE]" not in text
        job.succeed()

    def test_a_parked_prompt_that_was_altered_stays_parked(
        self, http: httpx.Client, store: Store, by_hand: Worker
    ) -> None:
        job_id = http.post("/v1/jobs", json={"endpoint": CHAT, "body": BODY}).json()["id"]
        by_hand.next().park()
        store.redis.set(f"fabric:payload:{job_id}", b'{"body":{}}')
        refused = http.post(f"/v1/dead-letters/{job_id}/replay")
        assert (refused.status_code, refused.json()["error"]["code"]) == (500, "broken_seal")
        assert http.get(f"/v1/jobs/{job_id}").json()["state"] == "dead"


def test_a_placeholder_lies_sealed_beside_its_job(gateway: Served, store: Store, by_hand: Worker, sent: Any) -> None:
    with gateway.http() as http:
        body = BODY | {"fabric": {"privacy": "confidential"}}
        body |= {"messages": [{"role": "user", "content": f"{PROMPT} ada@example.com"}]}
        job_id = http.post("/v1/jobs", json={"endpoint": CHAT, "body": body}).json()["id"]
        job = by_hand.next()
        assert "ada@example.com" in job.body["messages"][0]["content"]
        assert store.redis.hget(f"fabric:job:{job_id}", "placeholders")
        job.succeed("mail <EMAIL_1>")
        shown = http.get(f"/v1/jobs/{job_id}").json()
        assert shown["result"]["choices"][0]["message"]["content"] == "mail ada@example.com"
    is_sealed(kept(store) + sent())


class TestDeletion:
    def recorded(self, gateway: Served, store: Store) -> None:
        Recorder(store, gateway.ledger, HomeSeals(gateway.settings.secrets)).step()

    def test_of_a_job_that_has_ended_nothing_is_left_but_what_it_took(
        self, gateway: Served, http: httpx.Client, store: Store, by_hand: Worker
    ) -> None:
        job_id = http.post("/v1/jobs", json={"endpoint": CHAT, "body": BODY | {"stream": True}}).json()["id"]
        job = by_hand.next()
        assert http.delete(f"/v1/jobs/{job_id}").status_code == 409
        job.say(ANSWER)
        job.succeed()
        assert http.delete(f"/v1/jobs/{job_id}").status_code == 409  # not in the accounts yet
        self.recorded(gateway, store)
        assert http.get(f"/v1/jobs/{job_id}").json()["result"]
        for _ in range(2):
            assert http.delete(f"/v1/jobs/{job_id}").json() == {"id": job_id, "object": "job", "deleted": True}
        shown = http.get(f"/v1/jobs/{job_id}").json()
        assert (shown["state"], shown["result"], shown["usage"]["output_tokens"]) == ("succeeded", None, 2)
        assert [key for key in store.redis.scan_iter() if job_id.encode() in key] == []
        assert http.get(f"/v1/jobs/{job_id}/events").status_code == 404

    def test_one_that_is_parked_is_dropped_instead(
        self, gateway: Served, http: httpx.Client, store: Store, by_hand: Worker
    ) -> None:
        job_id = http.post("/v1/jobs", json={"endpoint": CHAT, "body": BODY}).json()["id"]
        by_hand.next().park()
        self.recorded(gateway, store)
        refused = http.delete(f"/v1/jobs/{job_id}")
        assert refused.status_code == 409
        assert "dead-letters" in refused.json()["error"]["message"]
        assert store(reads.state(job_id)) is JobState.DEAD

    def test_anothers_or_none_at_all(self, http: httpx.Client, store: Store) -> None:
        spec = JobSpec(new_id("job"), CHAT, "small", tenant="other")
        store(transitions.accept([transitions.NewJob(spec, b"")]))
        for job_id in (spec.id, new_id("job"), "job_x"):
            assert http.delete(f"/v1/jobs/{job_id}").status_code == 404

    def test_a_label_says_how_long_an_answer_stays(
        self, gateway: Served, http: httpx.Client, store: Store, by_hand: Worker
    ) -> None:
        kept = {}
        for label in ("public", "restricted"):
            body = BODY | {"fabric": {"privacy": label}}
            job_id = http.post("/v1/jobs", json={"endpoint": CHAT, "body": body}).json()["id"]
            by_hand.next().succeed(ANSWER)
            rules = PrivacyRules(restricted=PrivacyRule(tiers=("cpu",), retention_s=20))
            catalog = gateway.settings.catalog.model_copy(update={"privacy": rules})
            Recorder(store, gateway.ledger, HomeSeals(gateway.settings.secrets), catalog=catalog).step()
            kept[label] = store.redis.ttl(f"fabric:job:{job_id}")
        assert 3_500 < kept["public"] <= 3_600
        assert 0 < kept["restricted"] <= 20
