"""What completions come to: counted once, however many recorders let go of them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import pytest

from fabric.contracts.completion import Completion, EarlierAttempt
from fabric.contracts.job import JobSpec, Measures, Usage
from fabric.store import Store, counts
from fabric.store.reads import COMPLETIONS

USAGE = Usage(input_tokens=10, output_tokens=4, cached_input_tokens=3)


def earlier(number: int, outcome: str) -> EarlierAttempt:
    measures = Measures(usage=Usage(output_tokens=1), cost_usd=0.5)
    return EarlierAttempt(number, "big", "gpu", "w", outcome, 1, 2, 3, measures, None)


def done(*before: EarlierAttempt, state: str = "succeeded", dispatched_ms: int | None = 1_100) -> Completion:
    return Completion(
        entry_id="1-0",
        spec=JobSpec("job_1", "/v1/chat/completions", "small"),
        state=state,
        attempt=len(before) + 1,
        deployment="d",
        tier="cpu",
        worker="w",
        accepted_ms=1_000,
        dispatched_ms=dispatched_ms,
        claimed_ms=1_300,
        finished_ms=2_300,
        measures=Measures(engine_s=0.9, usage=USAGE, cost_usd=0.25),
        result=None,
        error=None,
        earlier=before,
    )


def test_a_job_its_tries_its_tokens_and_its_money() -> None:
    found = counts.tally([done(earlier(1, "requeued")), done()])
    assert found["jobs cpu d succeeded"] == 2
    assert (found["attempts cpu d succeeded"], found["attempts gpu big requeued"]) == (2, 1)
    assert (found["tokens cpu d input"], found["tokens cpu d cached_input"], found["tokens gpu big output"]) == (
        20,
        6,
        1,
    )
    assert (found["cost cpu d"], found["cost gpu big"]) == (0.5, 0.5)


def test_tries_before_a_job_was_parked_were_counted_then() -> None:
    found = counts.tally([done(earlier(1, "requeued"), earlier(2, "dead"), earlier(3, "requeued"))])
    assert found["attempts gpu big requeued"] == 1


def test_a_job_that_ended_while_it_waited_for_its_next_try_had_no_further_one() -> None:
    """The try that it waited behind is its last, as in the ledger."""
    before = earlier(1, "requeued"), earlier(2, "requeued")
    waited = replace(done(*before, state="cancelled", dispatched_ms=None), attempt=2, tier=None)
    found = counts.tally([waited])
    assert {name: value for name, value in found.items() if name.startswith("attempts")} == {
        "attempts gpu big requeued": 1,
        "attempts gpu big cancelled": 1,
    }


def test_every_stage_has_its_seconds() -> None:
    found = counts.tally([done()])
    sums = {name: value for name, value in found.items() if name.startswith("stage_sum")}
    assert sums == pytest.approx(
        {
            "stage_sum backlog cpu": 0.1,
            "stage_sum queue cpu": 0.2,
            "stage_sum wait cpu": 0.3,
            "stage_sum engine cpu": 0.9,
            "stage_sum commit cpu": 0.1,
        }
    )
    assert not [name for name in counts.tally([done(dispatched_ms=None)]) if name.startswith("stage")]


def test_quantiles_are_those_of_prometheus() -> None:
    seen = {("stage", "engine", "cpu", "1"): 8.0, ("stage", "engine", "cpu", "2.5"): 2.0}
    assert counts.quantile(seen, "engine", "cpu", 0.5) == pytest.approx(0.5 + 0.5 * 5 / 8)
    assert counts.quantile(seen, "engine", "cpu", 0.95) == pytest.approx(1 + 1.5 * 1.5 / 2)
    assert counts.quantile({("stage", "engine", "cpu", "inf"): 1.0}, "engine", "cpu", 0.5) == counts.BOUNDS_S[-1]
    assert counts.quantile({}, "engine", "cpu", 0.5) is None


def test_errors_of_predictions_are_shares_of_what_came_true() -> None:
    amounts: counts.Amounts = defaultdict(float)
    for predicted_s, actual_s in ((1.0, 2.0), (2.9, 2.0), (30.0, 1.0), (1.0, 0.0)):
        counts.mispredicted(amounts, "finish", "cpu", predicted_s, actual_s)
    found = {tuple(name.split(" ")): value for name, value in amounts.items()}
    assert found["error_sum", "finish", "cpu"] == pytest.approx(0.5 + 0.45 + 29)
    below = dict(counts.buckets(found, "finish", "cpu", "error"))
    assert (below["0.4"], below["0.5"], below["10"], below["inf"]) == (0, 2, 2, 3)
    assert counts.quantile(found, "finish", "cpu", 0.5, "error") == pytest.approx(0.4 + 0.1 * 1.5 / 2)
    assert counts.quantile(found, "finish", "cpu", 0.9, "error") == counts.ERROR_BOUNDS[-1]


def test_entries_are_let_go_of_and_counted_once(store: Store) -> None:
    store.redis.xgroup_create(COMPLETIONS, "g", id="0", mkstream=True)
    entries = [store.redis.xadd(COMPLETIONS, {"a": n}) for n in range(3)]
    store.redis.xreadgroup("g", "me", {COMPLETIONS: ">"})
    assert store(counts.let_go("g", entries, {"jobs cpu d succeeded": 3})) == 3
    assert store(counts.let_go("g", entries, {"jobs cpu d succeeded": 3})) == 0
    assert store(counts.totals()) == {("jobs", "cpu", "d", "succeeded"): 3}
    assert store.redis.xlen(COMPLETIONS) == 0
    now_s, _ = store.redis.time()
    minutes = [store(counts.minute(now_s // 60 - ago)) for ago in (0, 1)]
    assert counts.summed(minutes) == {("jobs", "cpu", "d", "succeeded"): 3}
