"""Metrics of what jobs came to: one text that Prometheus takes, the same from every gateway."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import httpx
from prometheus_client.parser import text_string_to_metric_families

from fabric.contracts.catalog import Catalog
from fabric.contracts.completion import Completion, EarlierAttempt
from fabric.contracts.job import JobSpec, Measures, Usage
from fabric.gateway import zeros
from fabric.store import Store, counts

if TYPE_CHECKING:
    from fabric.gateway import GatewaySettings
    from tests.gateway.conftest import Served, Worker


BODY = {"model": "small", "messages": [{"role": "user", "content": "hi"}]}


def done(job: int, state: str = "succeeded", engine_s: float = 0.3) -> Completion:
    measures = Measures(gate_s=0.1, engine_s=engine_s, usage=Usage(10, 20, 4, 5), cost_usd=0.5)
    lost = EarlierAttempt(1, "m-cloud", "cloud", "w0", "requeued", 1, 2, 3, Measures(cost_usd=0.25), None)
    return Completion(
        entry_id="1-1",
        spec=JobSpec(id=f"job_{job}", endpoint="/v1/chat/completions", model="m"),
        state=state,
        attempt=2,
        deployment="m-cpu",
        tier="cpu",
        worker="w",
        accepted_ms=1_000,
        dispatched_ms=1_200,
        claimed_ms=1_250,
        finished_ms=1_700,
        measures=measures,
        result=None,
        error=None,
        earlier=(lost,),
    )


def samples(http: httpx.Client) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = http.get("/metrics").text
    names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names))  # told twice a metric isn't one
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_gateway_shows_the_same_counts(
    gateway: Served, settings: GatewaySettings, serve: Callable[..., Served], store: Store
) -> None:
    store(counts.add(counts.tally([done(1), done(2, "failed")])))
    with gateway.http() as one, serve(settings).http() as other:
        for found in (samples(one), samples(other)):
            place = (("deployment", "m-cpu"), ("tier", "cpu"))
            lost = (("deployment", "m-cloud"), ("tier", "cloud"))
            assert found["fabric_cost_usd_total", place] == 1.0
            assert found["fabric_cost_usd_total", lost] == 0.5
            assert found["fabric_tokens_total", (place[0], ("kind", "cached_input"), place[1])] == 8
            assert found["fabric_jobs_total", (place[0], ("outcome", "failed"), place[1])] == 1
            assert found["fabric_attempts_total", (lost[0], ("result", "requeued"), lost[1])] == 2


def test_stages_of_the_store_and_of_the_gateway_are_one_histogram(
    gateway: Served, store: Store, worker: Worker
) -> None:
    store(counts.add(counts.tally([done(1), done(2)])))
    with gateway.http() as http:
        assert http.post("/v1/chat/completions", json=BODY).status_code == 200
        found = samples(http)

    def stage(name: str, tier: str, suffix: str) -> float:
        return found[f"fabric_stage_seconds_{suffix}", (("stage", name), ("tier", tier))]

    assert stage("accept", "", "count") >= 1
    assert (stage("engine", "cpu", "count"), round(stage("engine", "cpu", "sum"), 6)) == (2, 0.6)
    # Waiting for a slot of the worker is waiting, not committing.
    assert (round(stage("queue", "cpu", "sum"), 6), round(stage("commit", "cpu", "sum"), 6)) == (0.3, 0.1)
    buckets = {
        dict(labels)["le"]: value
        for (name, labels), value in found.items()
        if name == "fabric_stage_seconds_bucket" and ("stage", "engine") in labels
    }
    assert (buckets["0.25"], buckets["0.5"], buckets["+Inf"]) == (0, 2, 2)


def test_counters_begin_at_zero(gateway: Served) -> None:
    """For everything that is known beforehand, so that the first failure of a kind is an increase."""
    with gateway.http() as http:
        found = samples(http)
    place = {"tier": "cpu", "deployment": "small-cpu"}
    for name, labels in (
        ("fabric_jobs_total", {**place, "outcome": "dead"}),
        ("fabric_jobs_total", {"tier": "none", "deployment": "none", "outcome": "expired"}),
        ("fabric_attempts_total", {**place, "result": "requeued"}),
        ("fabric_tokens_total", {**place, "kind": "reasoning"}),
        ("fabric_cost_usd_total", place),
        ("fabric_stage_seconds_count", {"stage": "engine", "tier": "cpu"}),
        ("fabric_errors_total", {"fault": "provider"}),
        ("fabric_rate_limit_refusals_total", {"scope": "key", "limit": "tokens"}),
        ("fabric_budget_blocks_total", {"scope": "tag", "unit": "usd"}),
        ("fabric_budget_warnings_total", {"scope": "all", "unit": "tokens"}),
        ("fabric_http_requests_total", {"route": "/v1/embeddings", "method": "POST", "status": "503"}),
        ("fabric_dead_letters", {"queue": "fabric.cpu.small-cpu"}),
        ("fabric_dead_letters", {"queue": "messages"}),
    ):
        assert found[name, tuple(sorted(labels.items()))] == 0, (name, labels)


def test_moves_begin_at_zero_between_the_tiers_of_one_model() -> None:
    catalog = Catalog.model_validate(
        {
            "models": [
                {"name": "a", "deployments": [{"engine": "mock", "tier": "cpu"}, {"engine": "mock", "tier": "cloud"}]},
                {"name": "b", "deployments": [{"engine": "mock", "tier": "gpu"}]},
            ]
        }
    )
    moves = zeros.fallbacks(catalog)
    assert {(left, to) for left, to, _ in moves} == {("cpu", "cloud"), ("cloud", "cpu")}
    assert {"engine_error", "provider_unavailable"} <= {reason for *_, reason in moves} and not any(moves.values())
