"""Reads of the sums: what was recorded, in every grouping, from any hour to any other."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import func, select

from fabric.contracts.completion import Completion, EarlierAttempt
from fabric.contracts.job import JobSpec, Measures, Usage
from fabric.ledger import Ledger, costs, usage, worker_hours
from fabric.ledger.costs import Filter, Group
from fabric.ledger.sums import DAY_MS, HOUR_MS
from fabric.ledger.tables import usage as usage_table
from fabric.ledger.usage import Note
from fabric.ledger.worker_hours import Up

MONDAY = int(datetime(2026, 11, 2, tzinfo=UTC).timestamp() * 1000)


def completion(job: int = 1, at: int = MONDAY, cost: float = 1.0, **values: Any) -> Completion:
    spec: dict[str, Any] = {"id": f"job_{job}", "endpoint": "/v1/chat/completions", "model": "m"}
    fixed: dict[str, Any] = {
        "entry_id": "1-1",
        "state": "succeeded",
        "attempt": 1,
        "deployment": "m-cpu",
        "tier": "cpu",
        "worker": "w",
        "accepted_ms": at - 20,
        "dispatched_ms": at - 15,
        "claimed_ms": at - 10,
        "finished_ms": at,
        "measures": Measures(engine_s=2.0, usage=Usage(10, 20, 4, 2), cost_usd=cost),
        "result": None,
        "error": None,
    }
    for name in ("tenant", "key_id", "tags", "model", "endpoint", "batch_id"):
        if name in values:
            spec[name] = values.pop(name)
    return Completion(spec=JobSpec(**spec), **(fixed | values))


def earlier(number: int, at: int, cost: float = 0.25, outcome: str = "requeued") -> EarlierAttempt:
    measures = Measures(engine_s=1.0, usage=Usage(10, 5, estimated=True), cost_usd=cost)
    return EarlierAttempt(number, "m-cloud", "cloud", "w0", outcome, at - 9, at - 8, at, measures, None, "old")


def read(ledger: Ledger, *groups: Group, **which: Any) -> list[dict[str, Any]]:
    return ledger.read(costs.grouped, Filter(**which), groups)[0]


def test_nothing_is_one_row_of_zeros(ledger: Ledger) -> None:
    (row,) = read(ledger)
    assert set(row.values()) == {0}
    assert read(ledger, "model") == []


def test_every_grouping_adds_up_to_the_same(ledger: Ledger) -> None:
    done = [
        completion(n, MONDAY + n * 7 * HOUR_MS, n / 8, tenant=f"t{n % 2}", key_id=f"k{n % 3}" if n % 3 else None)
        for n in range(1, 41)
    ]
    ledger.write(usage.add, done[:25])
    ledger.write(usage.add, done[25:])
    expected = sum(range(1, 41)) / 8
    for groups in ((), ("tenant",), ("key", "day"), ("hour",), ("tier", "deployment", "model", "endpoint", "hour")):
        rows = read(ledger, *groups)  # type: ignore[arg-type]
        assert sum(row["cost_usd"] for row in rows) == expected
        assert sum(row["requests"] for row in rows) == 40
        assert sum(row["input_tokens"] for row in rows) == 400
    assert {row["key"] for row in read(ledger, "key")} == {None, "k1", "k2"}
    assert [row["day"] for row in read(ledger, "day")] == sorted({d.finished_ms // DAY_MS * DAY_MS for d in done})


@pytest.mark.parametrize("groups", [(), ("day",), ("hour",), ("tenant", "day")])
@pytest.mark.parametrize(
    ("since_h", "until_h"),
    [(None, None), (0, 24), (5, 29), (5, 60), (24, 72), (3, 4), (3, 3), (20, 30), (None, 13), (13, None), (47, 49)],
)
def test_from_any_hour_to_any_other(
    ledger: Ledger, groups: tuple[Group, ...], since_h: int | None, until_h: int | None
) -> None:
    ledger.write(usage.add, [completion(n, MONDAY + n * HOUR_MS + 1, n) for n in range(80)])
    since = None if since_h is None else MONDAY + since_h * HOUR_MS
    until = None if until_h is None else MONDAY + until_h * HOUR_MS
    expected = sum(n for n in range(80) if (since_h or 0) <= n < (80 if until_h is None else until_h))
    rows = read(ledger, *groups, since_ms=since, until_ms=until)
    assert sum(row["cost_usd"] for row in rows) == expected


def test_an_hour_that_has_begun_counts_whole(ledger: Ledger) -> None:
    ledger.write(usage.add, [completion(1, MONDAY + 10), completion(2, MONDAY + HOUR_MS + 10)])
    assert read(ledger, since_ms=MONDAY + 500, until_ms=MONDAY + HOUR_MS + 1)[0]["requests"] == 2
    assert read(ledger, since_ms=MONDAY + 500, until_ms=MONDAY + HOUR_MS)[0]["requests"] == 1


def test_filters(ledger: Ledger) -> None:
    ledger.write(
        usage.add,
        [
            completion(1, tenant="a", key_id="k", tags=("x", "y"), model="big", tier="cloud", deployment="big-cloud"),
            completion(2, tenant="a", tags=("y",), endpoint="/v1/embeddings"),
            completion(3, tenant="b"),
        ],
    )
    for which, count in (
        ({"tenant": "a"}, 2),
        ({"key": "k"}, 1),
        ({"tag": "y"}, 2),
        ({"tag": "x"}, 1),
        ({"tag": "no"}, 0),
        ({"model": "big"}, 1),
        ({"tier": "cpu"}, 2),
        ({"deployment": "big-cloud"}, 1),
        ({"endpoint": "/v1/embeddings"}, 1),
        ({"tenant": "a", "tier": "cpu"}, 1),
    ):
        assert read(ledger, **which)[0]["requests"] == count, which
    assert [(row["tag"], row["requests"]) for row in read(ledger, "tag")] == [("x", 1), ("y", 2)]
    assert [(row["tag"], row["tier"]) for row in read(ledger, "tag", "tier", tag="y")] == [("y", "cloud"), ("y", "cpu")]
    assert read(ledger)[0]["requests"] == 3  # tags count nobody twice


def test_pages(ledger: Ledger) -> None:
    ledger.write(usage.add, [completion(n, MONDAY + n % 5 * DAY_MS, tenant=f"t{n % 7}") for n in range(35)])
    whole, none = ledger.read(costs.grouped, Filter(), ("day", "tenant"))
    assert (len(whole), none) == (35, None)
    paged: list[Any] = []
    after = None
    while True:
        rows, after = ledger.read(costs.grouped, Filter(), ("day", "tenant"), limit=8, after=after)
        paged += rows
        if after is None:
            break
    assert paged == whole


class TestOnce:
    def test_a_row_that_comes_again_counts_no_second_time(self, ledger: Ledger) -> None:
        first = [completion(n) for n in range(5)]
        ledger.write(usage.add, first)
        ledger.write(usage.add, first)
        ledger.write(usage.add, [completion(n) for n in range(3, 8)])
        ledger.write(usage.add, [completion(9), completion(9)])
        (row,) = read(ledger)
        assert (row["requests"], row["cost_usd"], row["attempts"]) == (9, 9.0, 9)

    def test_tries_before_the_last_cost_but_are_no_requests(self, ledger: Ledger) -> None:
        done = completion(1, attempt=3, earlier=(earlier(1, MONDAY - HOUR_MS), earlier(2, MONDAY - 5)))
        ledger.write(usage.add, [done])
        ledger.write(usage.add, [done])
        rows = ledger.read(usage.of_job, "default", "job_1")
        assert [(r.attempt, r.state, r.requests, r.estimated) for r in rows] == [
            (1, "requeued", 0, 1),
            (2, "requeued", 0, 1),
            (3, "succeeded", 1, 0),
        ]
        (row,) = read(ledger)
        assert (row["requests"], row["attempts"], row["cost_usd"], row["output_tokens"]) == (1, 3, 1.5, 30)
        assert [(r["tier"], r["requests"], r["cost_usd"]) for r in read(ledger, "tier")] == [
            ("cloud", 0, 0.5),
            ("cpu", 1, 1.0),
        ]
        page, _ = ledger.read(usage.page, "default", limit=9)
        assert [r.attempt for r in page] == [3]

    def test_a_job_that_was_parked_and_replayed_is_one_request(self, ledger: Ledger) -> None:
        ledger.write(usage.add, [completion(1, MONDAY, state="dead")])
        again = completion(1, MONDAY + 50, attempt=2, earlier=(earlier(1, MONDAY, outcome="dead"),))
        ledger.write(usage.add, [again])
        (row,) = read(ledger)
        assert (row["requests"], row["attempts"], row["cost_usd"]) == (1, 2, 2.0)


def test_what_else_is_noted(ledger: Ledger) -> None:
    ledger.write(usage.add, [completion(1, cost=1.0)], lambda _: Note("abc", 1.5, 3.0, 2.0))
    ledger.write(usage.add, [completion(2, cost=2.0)], lambda _: Note("abc", 1.0))
    ledger.write(usage.add, [completion(3, cost=5.0, state="failed")], lambda _: Note("abc", 9.0, 9.0, 9.0))
    (row,) = read(ledger)
    assert (row["cloud_equivalent_usd"], row["compared_usd"], row["baseline_usd"]) == (3.0, 1.0, 2.0)
    assert (row["expected_usd"], row["foreseen_usd"], row["missed_usd"]) == (2.5, 3.0, 1.5)
    assert (row["requests"], row["failures"], row["cost_usd"]) == (3, 1, 8.0)
    (used,) = ledger.read(usage.of_job, "default", "job_1")
    assert (used.policy_hash, used.expected_cost_usd, used.cloud_equivalent_usd) == ("abc", 1.5, 3.0)


def test_old_rows_go_and_their_sums_stay(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "_PRUNED_AT_ONCE", 3)
    ledger.write(usage.add, [completion(n, MONDAY + n * 1000, tenant=f"t{n % 2}") for n in range(20)])
    counts = []
    while count := ledger.write(usage.prune, MONDAY + 10_000):
        counts.append(count)
    assert sum(counts) == 10
    assert max(counts) <= 3
    left = ledger.read(lambda connection: connection.execute(select(func.count()).select_from(usage_table)).scalar())
    assert left == 10
    assert read(ledger)[0]["requests"] == 20


class TestMachines:
    def test_hours_of_workers(self, ledger: Ledger) -> None:
        half_past = MONDAY + HOUR_MS // 2
        w1, w2 = Up("w1", "cpu", 4, half_past, 2.0), Up("w2", "gpu", 8, MONDAY, 10.0)
        for now in (half_past + 60_000, MONDAY + 2 * HOUR_MS, half_past + 120_000):  # the last one comes late
            ledger.write(worker_hours.note, [w1, w2], now)
        found = {m.tier: m for m in ledger.read(worker_hours.machines)}
        assert (found["cpu"].up_s, found["cpu"].usd) == (pytest.approx(5400), pytest.approx(3.0))
        assert (found["gpu"].workers, found["gpu"].usd) == (1, pytest.approx(20.0))
        (cpu, _) = ledger.read(worker_hours.machines, MONDAY, MONDAY + HOUR_MS)
        assert cpu.up_s == pytest.approx(1800)

    def test_one_that_started_long_ago_isnt_counted_back_for_ever(self, ledger: Ledger) -> None:
        ledger.write(worker_hours.note, [Up("w", "cpu", 1, MONDAY - 90 * DAY_MS, 1.0)], MONDAY)
        (cpu,) = ledger.read(worker_hours.machines)
        assert cpu.up_s == pytest.approx(DAY_MS / 1000)
