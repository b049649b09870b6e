"""The console's pages, as a browser without scripts gets them."""

from __future__ import annotations

import html
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from fabric.contracts.breaker import Health
from fabric.contracts.completion import Completion
from fabric.contracts.ids import line_job_id
from fabric.contracts.job import JobSpec, Measures
from fabric.ledger import batches, usage
from fabric.ledger.sums import DAY_MS
from fabric.ledger.tables import SUM_AMOUNTS, SUM_COUNTS, usage_sums

if TYPE_CHECKING:
    from fabric.store import Store
    from tests.gateway.conftest import Served, Worker

PAGES = ("", "/jobs", "/batches", "/dead-letters", "/costs", "/policy")
CHAT = "/v1/chat/completions"
SECRET = "a-word-that-is-nowhere"
BODY: dict[str, Any] = {"model": "small", "messages": [{"role": "user", "content": SECRET}]}
#: As a browser says of a form that was sent from one of the console's own pages.
OWN = {"sec-fetch-site": "same-origin"}


@pytest.fixture
def console(gateway: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{gateway.url}/console", timeout=60, trust_env=False, follow_redirects=True) as client:
        yield client


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_whole_and_keeps_to_itself(console: httpx.Client, path: str) -> None:
    answer = console.get(path)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-security-policy"].startswith("default-src 'self';")
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["cache-control"] == "no-store"
    page = answer.text
    assert page.count("<h1>") == 1 and '<main id="main"' in page and 'aria-current="page"' in page
    assert "<style" not in page and " style=" not in page and " onclick" not in page
    assert "http://" not in page and "https://" not in page


def test_a_job_tells_its_story_without_its_text(by_hand: Worker, gateway: Served, console: httpx.Client) -> None:
    with gateway.http() as http:
        asked = {"endpoint": CHAT, "body": BODY, "fabric": {"tags": ["red", "blue"]}}
        job_id = http.post("/v1/jobs", json=asked).json()["id"]
    job = by_hand.next()
    assert "running" in console.get(f"/jobs/{job_id}").text
    job.succeed(SECRET)
    page = console.get(f"/jobs/{job_id}").text
    assert "succeeded" in page and "small-cpu" in page and "ran at small-cpu" in page and "red" in page
    assert SECRET not in page


def test_the_search_finds_by_what_is_known(worker: Worker, gateway: Served, console: httpx.Client) -> None:
    with gateway.http() as http:
        ids = {
            tag: http.post("/v1/jobs", json={"endpoint": CHAT, "body": BODY, "fabric": {"tags": [tag]}}).json()["id"]
            for tag in ("red", "redder")
        }
        for job_id in ids.values():
            http.get(f"/v1/jobs/{job_id}/events")
    page = console.get("/jobs", params={"tag": "red"}).text
    assert ids["red"] in page and ids["redder"] not in page
    assert ids["red"] not in console.get("/jobs", params={"state": "failed"}).text
    assert ids["red"] in console.get("/jobs", params={"model": "small", "tier": "cpu", "state": "succeeded"}).text
    assert "<html" not in console.get("/jobs", headers={"hx-request": "true"}).text
    assert str(console.get("/jobs", params={"id": ids["red"]}).url).endswith(ids["red"])


def test_dead_letters_are_replayed_and_dropped_in_bulk(
    by_hand: Worker, gateway: Served, console: httpx.Client, state: Callable[[str], Any]
) -> None:
    with gateway.http() as http:
        ids = [http.post("/v1/jobs", json={"endpoint": CHAT, "body": BODY}).json()["id"] for _ in range(4)]
    for _ in ids:
        by_hand.next().park()
    page = console.get("/dead-letters").text
    assert all(job_id in page for job_id in ids) and "4 jobs are parked" in page and SECRET not in page
    page = console.post("/dead-letters/replay", data={"job": ids[:2]}, headers=OWN).text
    assert "wait again" in page and "2 jobs are parked" in page
    for _ in range(2):
        by_hand.next().succeed()
    assert [state(job_id) for job_id in ids[:2]] == ["succeeded"] * 2
    asked = console.post("/dead-letters/drop", data={"job": ids[2:]}, headers=OWN).text
    assert "Drop 2 dead letters for good?" in asked and state(ids[2]) == "dead"
    console.post("/dead-letters/drop", data={"job": ids[2:], "sure": "yes"}, headers=OWN)
    assert state(ids[2]) is None and "Nothing is parked" in console.get("/dead-letters").text


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "none"},
        {"origin": "http://elsewhere.example"},
        {"origin": "null"},
        {},
    ],
)
def test_forms_of_others_change_nothing(
    by_hand: Worker, gateway: Served, console: httpx.Client, state: Callable[[str], Any], headers: dict[str, str]
) -> None:
    with gateway.http() as http:
        job_id = http.post("/v1/jobs", json={"endpoint": CHAT, "body": BODY}).json()["id"]
    by_hand.next().park()
    answer = console.post("/dead-letters/drop", data={"job": job_id, "sure": "yes"}, headers=headers)
    assert answer.status_code == 403 and state(job_id) == "dead"


def test_an_older_browser_says_its_origin(console: httpx.Client, gateway: Served) -> None:
    answer = console.post("/policy/try", data={"model": "small", "endpoint": CHAT}, headers={"origin": gateway.url})
    assert answer.status_code == 200


def test_a_request_is_tried(worker: Worker, console: httpx.Client, eventually: Any, gateway: Served) -> None:
    eventually(lambda: gateway.metric("fabric_worker_slots"))
    form = {"model": "small", "endpoint": CHAT, "prompt_tokens": "100", "privacy": "restricted"}
    assert "It would go to <strong>small-cpu</strong>" in console.post("/policy/try", data=form, headers=OWN).text
    page = console.post("/policy/try", data=form | {"prompt_tokens": "1000000"}, headers=OWN).text
    assert "It would go nowhere" in page and "context" in page
    page = console.post("/policy/try", data=form | {"deadline_s": "x"}, headers=OWN).text
    assert "deadline_s" in page and "400" in page


def test_a_missing_page_is_said_on_a_page(console: httpx.Client) -> None:
    for path in ("/nothing", "/jobs/job_none", "/batches/batch_none"):
        answer = console.get(path)
        assert answer.status_code == 404 and answer.headers["content-type"].startswith("text/html")
        assert "default-src 'self'" in answer.headers["content-security-policy"]


def test_files_are_asked_for_again_but_not_sent_again(console: httpx.Client) -> None:
    first = console.get("/static/console.js")
    assert first.headers["cache-control"] == "no-cache"
    again = console.get("/static/console.js", headers={"if-none-match": first.headers["etag"]})
    assert again.status_code == 304
    assert console.get("/static/../console.py").status_code == 404


def test_a_batch_shows_how_far_it_is(gateway: Served, console: httpx.Client) -> None:
    with gateway.http() as http:
        line = b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "small"}}\n'
        file_id = http.post("/v1/files", files={"file": ("in.jsonl", line)}, data={"purpose": "batch"}).json()["id"]
        asked = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"}
        batch_id = http.post("/v1/batches", json=asked).json()["id"]
    completion = Completion(
        entry_id="1-1",
        spec=JobSpec(line_job_id(batch_id, 1), CHAT, "small", batch_id=batch_id, line_no=1, custom_id="a"),
        state="succeeded",
        attempt=1,
        deployment="small-cpu",
        tier="cpu",
        worker="w1",
        accepted_ms=1,
        dispatched_ms=2,
        claimed_ms=3,
        finished_ms=4,
        measures=Measures(cost_usd=12.5),
        result=None,
        error=None,
    )
    gateway.ledger.write(usage.add, [completion])
    listed = console.get("/batches").text
    assert batch_id in listed
    assert "$12.50" in listed
    assert "validating" in console.get(f"/batches/{batch_id}").text
    page = console.post(f"/batches/{batch_id}/cancel", headers=OWN).text
    assert "Its end was asked for" in page and "cancelling" in page


def test_a_batch_that_is_planned_shows_its_plan(gateway: Served, console: httpx.Client) -> None:
    with gateway.http() as http:
        line = b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "small"}}\n'
        file_id = http.post("/v1/files", files={"file": ("in.jsonl", line)}, data={"purpose": "batch"}).json()["id"]
        asked = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h", "fabric": {"deadline_s": 60}}
        batch_id = http.post("/v1/batches", json=asked).json()["id"]
    gateway.ledger.write(batches.advance, batch_id, "validating", "in_progress", in_progress_ms=1)
    plan = {"shortfall": None, "places": [{"deployment": "small-cpu", "lines": 7, "in_hand": 2}]}
    gateway.ledger.write(batches.keep_plan, batch_id, json.dumps(plan).encode())
    shown = console.get(f"/batches/{batch_id}").text
    assert "On course." in shown and "7 lines to come on small-cpu, 2 there." in shown
    plan["shortfall"] = {"detail": "too little time for 3 lines"}
    gateway.ledger.write(batches.keep_plan, batch_id, json.dumps(plan).encode())
    assert "Not all can be done: too little time for 3 lines." in console.get(f"/batches/{batch_id}").text


def test_a_deployment_that_gets_no_jobs_says_why(console: httpx.Client, store: Store, eventually: Any) -> None:
    assert "closed</td>" in console.get("").text
    health = Health(trips=1, why="failures", open_until=int(time.time() * 1000) + 60_000)
    store.redis.hset("fabric:health", "small-cpu", json.dumps(asdict(health)))
    assert eventually(lambda: "open</span> (failures)</td>" in console.get("").text)


def test_costs_add_up(gateway: Served, console: httpx.Client) -> None:
    zeros = dict.fromkeys((*SUM_COUNTS, *SUM_AMOUNTS), 0)
    keys = {"period": "brief", "tag": "", "key_id": "", "endpoint": CHAT, "model": "small", "deployment": "d"}
    today_ms = time.time_ns() // 1_000_000 // DAY_MS * DAY_MS
    spent = [("acme", "cpu", 1.25, 3.0), ("acme", "cloud", 2.0, 2.0), ("other", "cpu", 0.5, 1.0), ("other", "", 0, 0)]
    rows = [
        {**zeros, **keys, "tenant": tenant, "tier": tier, "at_ms": today_ms - DAY_MS, "requests": 10}
        | {"cost_usd": cost, "compared_usd": cost, "cloud_equivalent_usd": cloud}
        for tenant, tier, cost, cloud in spent
    ]
    with gateway.ledger.writing() as connection:
        connection.execute(usage_sums.insert(), rows)
    page = console.get("/costs", params={"days": 7}).text
    assert "<dd>$3.75 <small>in 7 days" in page and "<dd>$2.25 <small>against the cloud" in page
    assert "acme" in page and "$3.25" in page and page.index(">acme<") < page.index(">other<")
    assert "$93.75" in page  # a thousand jobs
    chart = html.unescape(re.findall(r'data-chart="([^"]*)"', page)[0])
    assert ">not placed<" in page and "not placed" not in chart, "no line for what never costs anything"
