"""``/v1/dead-letters``: parked jobs are looked at, replayed and dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from fabric.contracts.errors import NoEligibleDeployment
from fabric.contracts.ids import new_id
from fabric.contracts.job import JobSpec, JobState
from fabric.contracts.job_seals import HomeSeals, ReadingZones
from fabric.contracts.secret import Secrets
from fabric.store import Store, bad_messages, reads, transitions
from fabric.store.transitions import NewJob, Rejection

if TYPE_CHECKING:
    import httpx

    from tests.gateway.conftest import Served, Worker

CHAT = "/v1/chat/completions"
PATHS = [("GET", ""), ("POST", "/replay"), ("DELETE", "")]


def parked(http: httpx.Client, worker: Worker) -> str:
    """Its first attempt is given up, its second parks it."""
    body = {"model": "small", "messages": [{"role": "user", "content": "hi"}]}
    job_id = str(http.post("/v1/jobs", json={"endpoint": CHAT, "body": body}).json()["id"])
    assert worker.next().give_up() == "queued"
    worker.next().park()
    return job_id


def without_attempts(store: Store, tenant: str = "default") -> str:
    """Parked by the scheduler: it had nowhere to go."""
    while True:
        spec = JobSpec(id=new_id("job"), endpoint=CHAT, model="small", tenant=tenant)
        sealed = HomeSeals(Secrets(["s" * 32])).payload(spec, b"{}", ReadingZones(frozenset({"local"}), frozenset()))
        store(transitions.accept([NewJob(spec, sealed)]))
        if store(transitions.take([(spec.lane, 1)])):  # before a worker of the test's own did
            store(transitions.reject([Rejection(spec.id, JobState.DEAD, NoEligibleDeployment("Nowhere.").info)]))
            return spec.id


class TestLooks:
    def test_why_it_is_here_and_what_was_tried(self, by_hand: Worker, http: httpx.Client) -> None:
        job_id = parked(http, by_hand)
        letter = http.get(f"/v1/dead-letters/{job_id}").json()
        assert (letter["job_id"], letter["queue"]) == (job_id, "fabric.cpu.small-cpu")
        assert [attempt["outcome"] for attempt in letter["attempts"]] == ["requeued", "dead"]
        assert [reason["code"] for reason in letter["reasons"]] == ["engine_error", "engine_error"]
        job = http.get(f"/v1/jobs/{job_id}").json()
        assert (job["state"], letter["parked_at"]) == ("dead", job["finished_ms"] // 1000)
        assert http.get("/v1/dead-letters").json()["data"] == [letter]

    def test_one_that_never_ran_has_no_queue(self, http: httpx.Client, store: Store) -> None:
        letter = http.get(f"/v1/dead-letters/{without_attempts(store)}").json()
        assert (letter["queue"], letter["attempts"]) == (None, [])
        assert [reason["code"] for reason in letter["reasons"]] == ["no_eligible_deployment"]

    @pytest.mark.parametrize("limit", [1, 2, 100])
    def test_each_once_the_newest_first(self, http: httpx.Client, store: Store, limit: int) -> None:
        jobs = {without_attempts(store) for _ in range(5)}
        for _ in range(3):
            without_attempts(store, "other")
        listed: list[dict[str, Any]] = []
        query: dict[str, Any] = {"limit": limit}
        while True:
            page = http.get("/v1/dead-letters", params=query).json()
            listed += page["data"]
            if not page["has_more"]:
                break
            query["cursor"] = page["next_cursor"]
        assert len(listed) == 5
        assert {letter["job_id"] for letter in listed} == jobs
        times = [letter["parked_ms"] for letter in listed]
        assert times == sorted(times, reverse=True)

    def test_wrong_parameters_are_named(self, http: httpx.Client) -> None:
        for query, param in (("cursor=x", "cursor"), ("limit=0", "limit"), ("because=x", "because")):
            refused = http.get(f"/v1/dead-letters?{query}")
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)

    def test_they_are_counted_by_queue(self, by_hand: Worker, http: httpx.Client, gateway: Served) -> None:
        parked(http, by_hand)
        assert gateway.metric("fabric_dead_letters", queue="fabric.cpu.small-cpu") == 1

    def test_also_those_that_never_were_in_one(self, gateway: Served, store: Store) -> None:
        without_attempts(store)
        without_attempts(store)
        assert gateway.metric("fabric_dead_letters", queue="none") == 2


class TestFilters:
    def ids(self, http: httpx.Client, **query: Any) -> list[str]:
        return [letter["job_id"] for letter in http.get("/v1/dead-letters", params=query).json()["data"]]

    def test_by_what_it_is(self, by_hand: Worker, http: httpx.Client, store: Store) -> None:
        tried, never = parked(http, by_hand), without_attempts(store)
        assert self.ids(http, reason="engine_error") == [tried]
        assert self.ids(http, reason="no_eligible_deployment") == [never]
        assert self.ids(http, reason="no_such_code") == []
        assert self.ids(http, tier="cpu") == [tried]
        assert self.ids(http, tier="cloud") == []
        assert sorted(self.ids(http, model="small")) == sorted([tried, never])
        assert self.ids(http, model="other") == []

    def test_by_age(self, http: httpx.Client, store: Store) -> None:
        old, new = without_attempts(store), without_attempts(store)
        store.redis.hset(f"fabric:job:{old}", "finished_at", 1_000)
        store.redis.zadd("fabric:dead", {old: 1_000})
        assert self.ids(http, min_age_s=3_600) == [old]
        assert self.ids(http, max_age_s=3_600) == [new]

    def test_a_page_that_nothing_fits_still_leads_on(
        self, http: httpx.Client, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("fabric.gateway.dead_letters._SCANNED", 2)
        wanted = without_attempts(store)
        store.redis.hset(f"fabric:job:{wanted}", "finished_at", 1_000)
        store.redis.zadd("fabric:dead", {wanted: 1_000})
        for _ in range(4):
            without_attempts(store)
        found: list[str] = []
        query: dict[str, Any] = {"limit": 1, "min_age_s": 3_600}
        while "cursor" not in query or query["cursor"]:
            page = http.get("/v1/dead-letters", params=query).json()
            found += [letter["job_id"] for letter in page["data"]]
            query["cursor"] = page["next_cursor"]
        assert found == [wanted]

    def test_messages_that_nobody_can_read(self, http: httpx.Client, store: Store, gateway: Served) -> None:
        store(bad_messages.set_aside("unreadable body", b"\xff", "fabric.cpu.small-cpu"))
        (letter,) = http.get("/v1/dead-letters", params={"kind": "messages"}).json()["data"]
        assert (letter["job_id"], letter["queue"], letter["body"]) == (None, "fabric.cpu.small-cpu", "/w==")
        assert letter["reasons"][0]["message"] == "unreadable body"
        assert http.get("/v1/dead-letters", params={"kind": "messages", "tier": "gpu"}).json()["data"] == []
        assert gateway.metric("fabric_dead_letters", queue="messages") == 1
        assert gateway.metric("fabric_messages_set_aside_total") == 1


class TestReplay:
    def test_under_another_policy_it_is_checked_from_the_start(
        self, by_hand: Worker, http: httpx.Client, store: Store
    ) -> None:
        job_id = parked(http, by_hand)
        replayed = http.post(f"/v1/dead-letters/{job_id}/replay", json={"policy": "cheapest"})
        assert (replayed.status_code, replayed.json()["policy"]) == (200, "cheapest")
        assert by_hand.next().spec.policy == "cheapest"

    @pytest.mark.parametrize(
        ("body", "param"), [({"policy": "nope"}, "policy"), ({"polcy": "x"}, "polcy"), ({"policy": 3}, "policy")]
    )
    def test_a_wrong_body_changes_nothing(
        self, http: httpx.Client, store: Store, body: dict[str, Any], param: str
    ) -> None:
        job_id = without_attempts(store)
        refused = http.post(f"/v1/dead-letters/{job_id}/replay", json=body)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
        assert store(reads.state(job_id)) is JobState.DEAD

    def test_the_same_job_runs_again(self, by_hand: Worker, http: httpx.Client) -> None:
        job_id = parked(http, by_hand)
        replayed = http.post(f"/v1/dead-letters/{job_id}/replay")
        assert replayed.status_code == 200
        assert replayed.json()["id"] == job_id
        again = by_hand.next()
        assert (again.spec.id, again.body["messages"][0]["content"]) == (job_id, "hi")
        again.succeed()
        job = http.get(f"/v1/jobs/{job_id}").json()
        assert (job["state"], [attempt["number"] for attempt in job["attempts"]]) == ("succeeded", [1, 2, 3])
        assert http.get("/v1/dead-letters").json()["data"] == []

    def test_twice_is_once(self, http: httpx.Client, store: Store) -> None:
        job_id = without_attempts(store)
        answers = [http.post(f"/v1/dead-letters/{job_id}/replay") for _ in range(2)]
        assert [(answer.status_code, answer.json()["state"]) for answer in answers] == [(200, "queued")] * 2
        assert store(reads.live_count()) == 1

    def test_only_what_is_parked(self, by_hand: Worker, http: httpx.Client, store: Store) -> None:
        job_id = parked(http, by_hand)
        http.post(f"/v1/dead-letters/{job_id}/replay")
        running = by_hand.next()
        assert http.post(f"/v1/dead-letters/{job_id}/replay").status_code == 409
        running.succeed()
        assert http.post(f"/v1/dead-letters/{job_id}/replay").status_code == 409


class TestDrop:
    def test_nothing_of_it_stays(self, by_hand: Worker, http: httpx.Client, store: Store) -> None:
        job_id = parked(http, by_hand)
        assert http.delete(f"/v1/dead-letters/{job_id}").json()["deleted"]
        assert [key for key in store.redis.scan_iter("*") if job_id.encode() in key] == []
        assert http.get("/v1/jobs").json()["data"] == []
        for method, path in PATHS:
            assert http.request(method, f"/v1/dead-letters/{job_id}{path}").status_code == 404

    def test_only_what_is_parked(self, by_hand: Worker, http: httpx.Client) -> None:
        job_id = parked(http, by_hand)
        http.post(f"/v1/dead-letters/{job_id}/replay")
        running = by_hand.next()
        assert http.delete(f"/v1/dead-letters/{job_id}").status_code == 404
        running.succeed()
        assert http.get(f"/v1/jobs/{job_id}").json()["state"] == "succeeded"


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_another_tenants_is_unknown(http: httpx.Client, store: Store, method: str, path: str) -> None:
    job_id = without_attempts(store, "other")
    assert http.request(method, f"/v1/dead-letters/{job_id}{path}").status_code == 404
    assert store(reads.state(job_id)) is JobState.DEAD


@pytest.mark.parametrize(("method", "path"), PATHS)
@pytest.mark.parametrize("job_id", ["nope", "job_00000000000000000000000000"])
def test_unknown_jobs(http: httpx.Client, method: str, path: str, job_id: str) -> None:
    assert http.request(method, f"/v1/dead-letters/{job_id}{path}").status_code == 404
