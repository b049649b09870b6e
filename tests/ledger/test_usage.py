"""Usage: one row for each attempt that ended a job, however often it is told."""

from __future__ import annotations

from typing import Any

import orjson

from fabric.contracts.completion import Completion
from fabric.contracts.errors import ProviderError
from fabric.contracts.job import JobSpec, Measures, Usage
from fabric.ledger import Ledger, usage


def completion(job: int = 1, attempt: int = 1, tenant: str = "default", **values: Any) -> Completion:
    spec = JobSpec(
        id=f"job_{job}", endpoint="/v1/chat/completions", model="small", tenant=tenant, tags=("a", "b"), batch_id="b1"
    )
    fixed: dict[str, Any] = {
        "entry_id": "1-1",
        "state": "succeeded",
        "deployment": "small-cpu",
        "tier": "cpu",
        "worker": "w1",
        "accepted_ms": 1_000,
        "dispatched_ms": 1_100,
        "claimed_ms": 1_200,
        "finished_ms": 2_000 + job,
        "measures": Measures(engine_s=0.5, usage=Usage(10, 20, 4, 2), cost_usd=0.25),
        "result": b"{}",
        "error": None,
    }
    return Completion(spec=spec, attempt=attempt, **(fixed | values))


def test_a_row_says_what_was_used(ledger: Ledger) -> None:
    ledger.write(usage.add, [completion()])
    (used,) = ledger.read(usage.of_job, "default", "job_1")
    assert (used.input_tokens, used.output_tokens, used.cached_input_tokens, used.reasoning_tokens) == (10, 20, 4, 2)
    assert (used.tags, used.cost_usd, used.engine_s, used.batch_id) == (("a", "b"), 0.25, 0.5, "b1")
    assert ledger.read(usage.of_job, "other", "job_1") == []


def test_the_same_attempt_again_changes_nothing(ledger: Ledger) -> None:
    ledger.write(usage.add, [completion()])
    ledger.write(usage.add, [completion(state="failed"), completion(attempt=2)])
    assert [(u.attempt, u.state) for u in ledger.read(usage.of_job, "default", "job_1")] == [
        (1, "succeeded"),
        (2, "succeeded"),
    ]


def test_an_error_is_kept_by_its_code_and_fault(ledger: Ledger) -> None:
    error = orjson.dumps(ProviderError("It broke.", code="x\0" + "y" * 200).info)
    ledger.write(usage.add, [completion(state="failed", error=error)])
    (used,) = ledger.read(usage.of_job, "default", "job_1")
    assert (used.fault, used.error_code) == ("provider", "x" + "y" * 63)


def test_pages_are_newest_first_and_a_tenants_own(ledger: Ledger) -> None:
    ledger.write(usage.add, [completion(job) for job in (1, 2, 3)] + [completion(3, attempt=2)])
    ledger.write(usage.add, [completion(9, tenant="other")])
    first, more = ledger.read(usage.page, "default", limit=3)
    assert ([(u.job_id, u.attempt) for u in first], more) == ([("job_3", 2), ("job_3", 1), ("job_2", 1)], True)
    rest, more = ledger.read(usage.page, "default", limit=3, after=usage.mark(first[-1]))
    assert ([u.job_id for u in rest], more) == (["job_1"], False)


def test_nothing_is_no_statement(ledger: Ledger) -> None:
    ledger.write(usage.add, [])
    assert ledger.read(usage.page, "default", limit=3) == ([], False)
