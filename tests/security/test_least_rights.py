"""A whole fabric under users with the least rights, and what one of them is refused."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import redis
from redis.exceptions import NoPermissionError

from tests.security.conftest import chat, lines_of, until

if TYPE_CHECKING:
    from tests.security.conftest import House, NewHouse


def place(tier: str, name: str, **values: Any) -> dict[str, Any]:
    options = {"latency_ms": 1, **values.pop("options", {})}
    return {"engine": "mock", "tier": tier, "name": name, "slots": 8, "options": options, **values}


MODELS: list[dict[str, Any]] = [
    {"name": "near", "deployments": [place("cpu", "near")]},
    {"name": "far", "deployments": [place("cloud", "far")]},
    {"name": "slow", "deployments": [place("cloud", "slow", options={"latency_ms": 600_000})]},
    {"name": "broken", "deployments": [place("cloud", "broken", options={"fail": 1})]},
    {"name": "moving", "deployments": [place("cloud", "moving-1", options={"fail": 1}), place("cpu", "moving-2")]},
]


@pytest.fixture(scope="module", params=["valkey", "rabbitmq"])
def house(request: pytest.FixtureRequest, new_house: NewHouse) -> Iterator[House]:
    house = new_house(request.param, MODELS)
    yield house.open("cpu", "cloud")
    house.close()


class TestAWholeFabric:
    """Everything that it does; ``test_nothing_was_missed`` looks whether anybody was refused anything."""

    def test_answers_of_each_tier(self, house: House) -> None:
        with house.http() as http:
            for model, tier in (("near", "cpu"), ("far", "cloud")):
                answer = http.post("/v1/chat/completions", json=chat(model))
                assert (answer.status_code, answer.headers["x-fabric-tier"]) == (200, tier), house.logs()

    def test_a_stream(self, house: House) -> None:
        with house.http() as http:
            body = chat("far", stream=True, stream_options={"include_usage": True})
            assert http.post("/v1/chat/completions", json=body).text.rstrip().endswith("data: [DONE]")

    def test_a_job_its_events_and_the_lists(self, house: House) -> None:
        with house.http() as http:
            headers = {"Idempotency-Key": f"once-{time.time_ns()}"}
            job = http.post("/v1/jobs", json={"endpoint": "/v1/chat/completions", "body": chat("far")}, headers=headers)
            again = http.post(
                "/v1/jobs", json={"endpoint": "/v1/chat/completions", "body": chat("far")}, headers=headers
            )
            assert again.json()["id"] == job.json()["id"]
            assert "succeeded" in http.get(f"/v1/jobs/{job.json()['id']}/events").text
            for path in ("/v1/jobs", "/v1/tiers", "/metrics", "/v1/usage", "/v1/costs", "/v1/models", "/console"):
                assert http.get(path, follow_redirects=True).status_code == 200, path
            assert http.post("/v1/route", json=chat("moving")).status_code == 200

    def test_a_job_that_runs_and_one_that_waits_are_cancelled(self, house: House) -> None:
        with house.http() as http:
            asked = {"endpoint": "/v1/chat/completions", "body": chat("slow")}
            ids = [http.post("/v1/jobs", json=asked).json()["id"] for _ in range(40)]
            until(lambda: http.get(f"/v1/jobs/{ids[0]}").json()["state"] == "running", house.logs)
            for job in (ids[-1], *ids):
                http.post(f"/v1/jobs/{job}/cancel")
            for job in ids:
                until(lambda job=job: http.get(f"/v1/jobs/{job}").json()["state"] == "cancelled", house.logs)

    def test_a_job_is_parked_replayed_and_dropped(self, house: House) -> None:
        with house.http() as http:
            job = http.post("/v1/jobs", json={"endpoint": "/v1/chat/completions", "body": chat("broken")}).json()["id"]
            until(lambda: http.get(f"/v1/jobs/{job}").json()["state"] == "dead", house.logs)
            assert http.post(f"/v1/dead-letters/{job}/replay").status_code in (200, 202)
            until(lambda: http.get(f"/v1/jobs/{job}").json()["state"] == "dead", house.logs)
            assert http.delete(f"/v1/dead-letters/{job}").status_code in (200, 204)

    def test_a_job_moves_to_another_tier(self, house: House) -> None:
        with house.http() as http:
            answer = http.post("/v1/chat/completions", json=chat("moving"))
            assert (answer.status_code, answer.headers["x-fabric-tier"]) == (200, "cpu"), house.logs()

    def test_a_batch(self, house: House) -> None:
        line = {"method": "POST", "url": "/v1/chat/completions"}
        rows = [{**line, "custom_id": str(n), "body": chat(("near", "far")[n % 2])} for n in range(40)]
        with house.http() as http:
            content = "\n".join(map(json.dumps, rows)).encode()
            file = http.post("/v1/files", files={"file": ("in.jsonl", content)}, data={"purpose": "batch"}).json()["id"]
            asked = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
            batch = http.post("/v1/batches", json=asked).json()["id"]
            done = until(
                lambda: (b := http.get(f"/v1/batches/{batch}").json())["status"] == "completed" and b, house.logs
            )
            output = http.get(f"/v1/files/{done['output_file_id']}/content").text
            assert {row["custom_id"] for row in lines_of(output)} == {str(n) for n in range(40)}

    def test_nothing_was_missed(self, house: House) -> None:
        assert house.denied() == [], house.logs()
