"""Beside the recorder: what is noted with each row, hours of live workers, rows that are too old."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from fabric.accounting import Bookkeeper, Notes
from fabric.contracts.catalog import Catalog
from fabric.contracts.completion import Completion
from fabric.contracts.decision import Decision, Scored
from fabric.contracts.job import JobSpec, JobState, Measures, Usage
from fabric.contracts.worker import WorkerInfo
from fabric.ledger import Ledger, usage, worker_hours
from fabric.ledger.sums import DAY_MS, HOUR_MS
from fabric.pricing import priced
from fabric.store import Store, counts, transitions
from fabric.store.transitions import Dispatch, NewJob

CATALOG = priced(
    Catalog.model_validate(
        {
            "tiers": {"cpu": {"usd_per_hour": 2.0}},
            "baseline": {"model": "base", "price": {"input_per_million": 100}},
            "models": [
                {
                    "name": "m",
                    "deployments": [
                        {"name": "local", "engine": "mock", "tier": "cpu"},
                        {"name": "dear", "engine": "mock", "tier": "cloud", "price": {"input_per_million": 20}},
                        {"name": "fair", "engine": "mock", "tier": "cloud", "price": {"input_per_million": 10}},
                        {"name": "unknown", "engine": "mock", "tier": "cloud"},
                    ],
                },
                {"name": "alone", "deployments": [{"name": "alone", "engine": "mock", "tier": "cpu"}]},
            ],
        }
    )
)


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    ledger = Ledger(ledger_url)
    yield ledger
    ledger.close()


def completion(job: int = 1, attempt: int = 1, at: int = 1_000, **spec: Any) -> Completion:
    fixed: dict[str, Any] = {"endpoint": "/v1/chat/completions", "model": "m"}
    return Completion(
        entry_id="1-1",
        spec=JobSpec(id=f"job_{job:026}", **(fixed | spec)),
        state=JobState.SUCCEEDED,
        attempt=attempt,
        deployment="local",
        tier="cpu",
        worker="w",
        accepted_ms=at,
        dispatched_ms=at,
        claimed_ms=at,
        finished_ms=at,
        measures=Measures(usage=Usage(1_000_000, 0)),
        result=None,
        error=None,
    )


def decided(store: Store, done: Completion, *plan: Scored) -> None:
    store(transitions.accept([NewJob(done.spec, b"sealed")]))
    store(transitions.take([(done.spec.lane, 1)], lease_ms=60_000))
    decision = Decision("cheapest", "hash", plan, ())
    store(transitions.dispatch([Dispatch(done.spec.id, "local", "cpu", decision.dump())]))


class TestPredictions:
    def errors(self, store: Store, done: Completion, **seen: Any) -> dict[str, float]:
        place = Scored("local", "cpu", 0, 0, **seen)
        decided(store, done, place, replace(place, deployment="dear", tier="cloud", expected_finish_s=99))
        amounts: counts.Amounts = defaultdict(float)
        Notes(store, CATALOG).of([done]).count_errors(amounts, [done])
        return dict(amounts)

    def test_are_held_against_what_came_true_since_the_decision(self, store: Store) -> None:
        done = replace(
            completion(),
            dispatched_ms=10_000,
            claimed_ms=11_000,
            finished_ms=15_000,
            measures=Measures(gate_s=0.5, engine_s=3.0, first_token_s=0.5),
        )
        seen = {"measured": True, "expected_finish_s": 6.0, "expected_first_token_s": 1.0}
        assert self.errors(store, done, **seen) == {
            "error finish cpu 0.2": 1,
            "error_sum finish cpu": pytest.approx(0.2),
            "error first_token cpu 0.5": 1,
            "error_sum first_token cpu": 0.5,
        }

    def test_a_guess_is_none(self, store: Store) -> None:
        done = replace(completion(), finished_ms=9_000)
        assert self.errors(store, done, measured=False, expected_finish_s=6.0) == {}

    def test_neither_has_one_come_true_that_failed(self, store: Store) -> None:
        done = replace(completion(), finished_ms=9_000, state=JobState.FAILED)
        assert self.errors(store, done, measured=True, expected_finish_s=6.0) == {}


class TestNotes:
    def test_have_the_rules_and_what_was_expected(self, store: Store) -> None:
        done = completion()
        decided(store, done, Scored("local", "cpu", 0, 0.25), Scored("fair", "cloud", 1, 9.0))
        note = Notes(store, CATALOG).of([done])(done)
        assert (note.policy_hash, note.expected_cost_usd) == ("hash", 0.25)

    def test_a_job_that_is_gone_has_none(self, store: Store) -> None:
        done, never_ran = completion(), completion(2, attempt=0)
        note = Notes(store, CATALOG).of([done, never_ran])
        assert note(done)[:2] == note(never_ran)[:2] == (None, None)

    @pytest.mark.parametrize(
        ("spec", "cloud", "baseline"),
        [
            ({}, 10, 100),  # the cheapest hosted deployment of the same model; one without a price is none
            ({"privacy": "restricted"}, 100, 100),  # none is permitted
            ({"allowed_tiers": ("cpu",)}, 100, 100),
            ({"needs": ("vision",)}, 100, 100),
            ({"model": "alone"}, 100, 100),
            ({"model": "gone"}, 100, 100),
            ({"deployment": "local", "max_cost_usd": 0.0, "prompt_tokens": 10**6}, 10, 100),
        ],
    )
    def test_the_cloud_equivalent(self, store: Store, spec: dict[str, Any], cloud: float, baseline: float) -> None:
        done = completion(**spec)
        note = Notes(store, CATALOG).of([done])(done)
        assert (note.cloud_equivalent_usd, note.baseline_usd) == pytest.approx((cloud, baseline))

    def test_cloud_equivalents_are_counted_of_answers_alone(self, store: Store) -> None:
        failed = replace(completion(2), state=JobState.FAILED)
        done = [completion(1), failed, completion(3, model="alone"), completion(4)]
        bare = CATALOG.model_copy(update={"baseline": None})
        beside = Notes(store, bare).of(done)
        amounts = counts.tally([])
        beside.count_equivalents(amounts, done)
        rows = [beside(each) for each in (done[0], done[3])]
        cost = done[0].measures.cost_usd + done[3].measures.cost_usd
        assert amounts == {
            "cloud cpu local": pytest.approx(sum(row.cloud_equivalent_usd for row in rows)),
            "compared cpu local": pytest.approx(cost),
        }

    def test_without_anything_to_compare_with_it_is_nothing(self, store: Store) -> None:
        done = completion(model="alone")
        bare = CATALOG.model_copy(update={"baseline": None})
        assert Notes(store, bare).of([done])(done)[2:] == (0.0, 0.0)


def beat(store: Store, started_ms: int, name: str = "w1", tier: str = "cpu", deployment: str = "local") -> None:
    info = WorkerInfo(name, tier, "host", 1, started_ms, {deployment: 4}, {deployment: 8}, {})
    store(transitions.heartbeat(info, []))


class TestBookkeeper:
    def test_notes_how_long_live_workers_are_up(self, store: Store, ledger: Ledger) -> None:
        now = int(time.time() * 1000)
        beat(store, now - HOUR_MS // 2)
        beat(store, now - HOUR_MS // 4, "w2", "cloud", "fair")
        books = Bookkeeper(store, ledger, CATALOG)
        books.look(now - 60_000)
        books.look(now)
        Bookkeeper(store, ledger, CATALOG).look(now - 30_000)  # another recorder's
        cloud, cpu = ledger.read(worker_hours.machines)
        assert (cpu.tier, cpu.workers, cpu.up_s, cpu.usd) == ("cpu", 1, pytest.approx(1800), pytest.approx(1.0))
        assert (cloud.tier, cloud.up_s, cloud.usd) == ("cloud", pytest.approx(900), 0)

    def test_forgets_rows_that_are_too_old(self, store: Store, ledger: Ledger) -> None:
        now = int(time.time() * 1000)
        ledger.write(usage.add, [completion(1, at=now - 10 * DAY_MS), completion(2, at=now)])
        assert Bookkeeper(store, ledger, CATALOG).prune() == 0
        books = Bookkeeper(store, ledger, CATALOG, retention_days=7)
        assert (books.prune(), books.prune()) == (1, 0)
        assert ledger.read(usage.of_job, "default", f"job_{2:026}")

    def test_runs_until_it_is_stopped(self, store: Store, ledger: Ledger) -> None:
        now = int(time.time() * 1000)
        beat(store, now - 60_000)
        ledger.write(usage.add, [completion(1, at=now - 10 * DAY_MS)])
        stop = threading.Event()
        books = Bookkeeper(store, ledger, CATALOG, retention_days=7, look_s=0.01)
        thread = threading.Thread(target=books.run, args=(stop,))
        thread.start()
        until = time.monotonic() + 30
        while ledger.read(usage.of_job, "default", f"job_{1:026}") and time.monotonic() < until:
            stop.wait(0.01)
        stop.set()
        thread.join(30)
        assert not thread.is_alive()
        assert ledger.read(usage.of_job, "default", f"job_{1:026}") == []
        assert ledger.read(worker_hours.machines)
