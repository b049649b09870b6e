"""Money adds up: over a mixed run with retries, streams, two tiers and a cancelled batch, the rows of the ledger, the
sums, the metrics and what callers were told are the same."""

from __future__ import annotations

import json
import re
import sqlite3
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fabric.client import Client

if TYPE_CHECKING:
    import httpx

    from tests.e2e.conftest import Fabric

CONFIG = """
tiers: {cpu: {watts: 100, usd_per_kwh: 0.5, usd_per_hour: 3.55}}
baseline: {model: gpt-5, provider: openai}
models:
  - name: assistant
    deployments:
      - {name: local, engine: mock, tier: cpu, slots: 8, options: {latency_ms: 5, tokens: 10, fail: 0.1}}
      - {name: hosted, engine: mock, tier: cloud, slots: 8, options: {tokens: 10},
         price: {input_per_million: 3, output_per_million: 15}}
  - name: slow
    deployments:
      - {name: slow, engine: mock, tier: cpu, slots: 4, options: {latency_ms: 200, tokens: 10}}
  - name: moving
    deployments:
      - {name: broken, engine: mock, tier: cpu, slots: 4, options: {fail: 1}}
      - {name: net, engine: mock, tier: cloud, slots: 4, options: {tokens: 10}, price: {output_per_million: 20}}
"""
CHATS, STREAMS, PINNED, MOVING, LINES, SLOW = 30, 10, 10, 3, 80, 120
KINDS = ("input", "cached_input", "output", "reasoning")


def batch_file(path: Path, model: str, count: int) -> Path:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "fabric": {"tags": ["batch"]}}
    with path.open("w") as file:
        for n in range(count):
            line = {"custom_id": f"line-{n}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")
    return path


class Stop(Exception):
    """Enough lines have run."""


@pytest.fixture
def mixed_run(fresh: Fabric) -> tuple[Fabric, dict[str, float], dict[str, Any]]:
    """A fabric that has done a bit of everything; what each caller was told of its cost, and the cancelled batch."""
    fabric = fresh.start(CONFIG)
    told: dict[str, float] = {}
    with fabric.http() as http, Client(fabric.url) as client:
        for n in range(CHATS + PINNED):
            options = {"tags": ["chat", f"t{n % 2}"]} | ({"deployment": "hosted"} if n >= CHATS else {})
            messages = [{"role": "user", "content": f"hello {n}"}]
            body = {"model": "assistant", "messages": messages, "fabric": options}
            answer = http.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
            told[answer.headers["x-fabric-job-id"]] = float(answer.headers["x-fabric-cost-usd"])
        for n in range(STREAMS):
            body = {"model": "assistant", "messages": [{"role": "user", "content": f"say {n}"}], "stream": True}
            assert http.post("/v1/chat/completions", json=body).text.endswith("data: [DONE]\n\n")
        for _ in range(MOVING):  # from one tier to another
            answer = http.post("/v1/chat/completions", json={"model": "moving", "messages": messages})
            assert (answer.status_code, answer.headers["x-fabric-deployment"]) == (200, "net"), answer.text
            told[answer.headers["x-fabric-job-id"]] = float(answer.headers["x-fabric-cost-usd"])
        whole = client.batch(batch_file(fabric.folder / "whole.jsonl", "assistant", LINES))
        cut = client.batch(batch_file(fabric.folder / "cut.jsonl", "slow", SLOW))
        whole.wait(timeout=120)

        def enough(done: int, total: int | None) -> None:
            if done >= 8:
                raise Stop

        with pytest.raises(Stop):
            cut.wait(timeout=120, progress=enough)
        cut.cancel()
        cut.wait(timeout=120)
        assert (whole.status, cut.status) == ("completed", "cancelled")
        return fabric, told, cut.values


def rows_of(fabric: Fabric) -> list[sqlite3.Row]:
    with sqlite3.connect(fabric.data / "ledger.sqlite3") as connection:
        connection.row_factory = sqlite3.Row
        return connection.execute("SELECT * FROM usage").fetchall()


def metrics(http: httpx.Client, name: str, *labels: str) -> dict[tuple[str, ...], float]:
    """The samples of one metric, by these labels."""
    found: Counter[tuple[str, ...]] = Counter()
    for line in http.get("/metrics").text.splitlines():
        if line.startswith(f"{name}{{"):
            values = dict(re.findall(r'(\w+)="([^"]*)"', line))
            found[tuple(values[label] for label in labels)] += float(line.rsplit(" ", 1)[1])  # type: ignore[assignment]
    return {key: value for key, value in found.items() if value}


def test_rows_sums_metrics_and_answers_agree(mixed_run: tuple[Fabric, dict[str, float], dict[str, Any]]) -> None:
    fabric, told, cut = mixed_run
    ran = cut["request_counts"]["completed"]
    jobs = CHATS + PINNED + STREAMS + MOVING + LINES
    with fabric.http() as http:
        # Batches end when their lines are in the ledger; single answers get there a moment later.
        succeeded = _until_recorded(fabric, jobs + ran)
        rows = rows_of(fabric)

        # Rows: one for each attempt, one of them the job's.
        assert len({(row["job_id"], row["attempt"]) for row in rows}) == len(rows)
        assert len(succeeded) == jobs + ran
        assert max(Counter(row["job_id"] for row in rows if row["requests"]).values()) == 1
        assert any(row["state"] == "requeued" for row in rows)  # a tenth of the tries failed
        assert {(row["deployment"], row["requests"]) for row in rows if row["model"] == "moving"} == {
            ("broken", 0),
            ("net", 1),
        }
        assert all(row["policy_hash"] and row["price_version"] for row in succeeded)
        assert all(row["expected_cost_usd"] is not None and row["baseline_usd"] > 0 for row in succeeded)

        # A cancelled batch: each line that ran was billed once, and those that didn't have no tokens.
        of_cut = [row for row in rows if row["batch_id"] == cut["id"]]
        assert sum(row["state"] == "succeeded" for row in of_cut) == ran >= 8
        assert sum(row["output_tokens"] for row in of_cut) == 10 * ran

        # What callers were told: the sum of the job's attempts.
        for job_id, cost in told.items():
            recorded = sum(row["cost_usd"] for row in rows if row["job_id"] == job_id)
            assert cost == pytest.approx(recorded, abs=1e-9)
            assert http.get(f"/v1/jobs/{job_id}").json()["cost_usd"] == pytest.approx(recorded)

        # Sums, by every way to group them.
        for groups in ("", "tier,deployment", "model,day", "hour,endpoint", "tenant,key"):
            found = http.get("/v1/costs", params={"group_by": groups, "limit": 1000}).json()["data"]
            assert sum(row["cost_usd"] for row in found) == pytest.approx(sum(row["cost_usd"] for row in rows))
            assert sum(row["requests"] for row in found) == sum(row["requests"] for row in rows)
            for kind in ("input_tokens", "cached_input_tokens", "output_tokens"):
                assert sum(row[kind] for row in found) == sum(row[kind] for row in rows), (groups, kind)
        tags = {row["tag"]: row["requests"] for row in http.get("/v1/usage?group_by=tag").json()["data"]}
        assert (tags["chat"], tags["t0"] + tags["t1"]) == (CHATS + PINNED, CHATS + PINNED)

        # Metrics.
        for kind in KINDS:
            by_place: Counter[tuple[str, ...]] = Counter()
            for row in rows:
                by_place[row["tier"], row["deployment"]] += row[f"{kind}_tokens"]
            counted = metrics(http, "fabric_tokens_total", "tier", "deployment", "kind")
            expected = {place: tokens for place, tokens in by_place.items() if tokens}
            assert {key[:2]: value for key, value in counted.items() if key[2] == kind} == expected
        cost: Counter[tuple[str, ...]] = Counter()
        for row in rows:
            cost[row["tier"], row["deployment"]] += row["cost_usd"]
        assert metrics(http, "fabric_cost_usd_total", "tier", "deployment") == {
            place: pytest.approx(usd, rel=1e-6) for place, usd in cost.items() if usd
        }
        outcomes = Counter(row["state"] for row in rows if row["requests"])
        assert metrics(http, "fabric_jobs_total", "outcome") == {(state,): n for state, n in outcomes.items()}
        states = Counter(row["state"] for row in rows if row["attempt"])
        assert metrics(http, "fabric_attempts_total", "result") == {(state,): n for state, n in states.items()}

        # Local work is cheaper than the hosted deployment of the same model would have been, or dearer; either is told.
        total = http.get("/v1/costs/summary").json()["total"]
        compared = [row for row in succeeded if row["cloud_equivalent_usd"]]
        assert total["savings_usd"] == pytest.approx(
            sum(row["cloud_equivalent_usd"] - row["cost_usd"] for row in compared), abs=1e-9
        )
        for name, column in (
            ("fabric_cloud_equivalent_usd_total", "cloud_equivalent_usd"),
            ("fabric_compared_cost_usd_total", "cost_usd"),
        ):
            assert sum(metrics(http, name, "tier").values()) == pytest.approx(
                sum(row[column] for row in compared), rel=1e-6
            )


def _until_recorded(fabric: Fabric, count: int) -> list[sqlite3.Row]:
    limit = time.monotonic() + 60
    while len(found := [row for row in rows_of(fabric) if row["state"] == "succeeded"]) < count:
        assert time.monotonic() < limit, f"{len(found)} of {count} rows are in the ledger"
        time.sleep(0.05)
    return found
