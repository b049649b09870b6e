"""Each law finds what breaks it, and nothing in a run where all went well."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from storm import laws
from storm.asks import answer_words, tokens
from storm.values import Death, Event, Evidence, Generation, Kept, Memory, Probe, Row, Told

ASK = 30
TEXT = " ".join(answer_words(ASK, "gabc1"))
PROMPT, COMPLETION = tokens(ASK)
COST = PROMPT * laws.CLOUD_INPUT_USD + COMPLETION * laws.CLOUD_OUTPUT_USD


def row(job: str = "job_1", attempt: int = 1, state: str = "succeeded", **values: Any) -> Row:
    fixed: dict[str, Any] = {
        "requests": 1,
        "privacy": "internal",
        "tier": "cloud",
        "deployment": "hosted-cloud",
        "worker": "w1",
        "error_code": None,
        "input_tokens": PROMPT,
        "output_tokens": COMPLETION,
        "cost_usd": COST,
        "machine_usd": 0.0,
        "estimated": 0,
        "accepted_ms": 1_000,
        "claimed_ms": 1_100,
        "finished_ms": 1_500,
    }
    return Row(job, attempt, state, **(fixed | values))


def told(job: str = "job_1", text: str | None = TEXT, **values: Any) -> Told:
    return Told(job, ASK, "internal", text, **({"state": "succeeded"} | values))


def finished(ask: int = ASK, engine: str = "cloud", label: str = "internal") -> Generation:
    prompt, completion = tokens(ask)
    return Generation(engine, "gabc1", ask, label, True, prompt, completion)


def event(**values: Any) -> Event:
    fixed = {"hook": "ended", "id": "evt_1", "type": "job.succeeded", "subject": "job_1"}
    return Event(**({**fixed, "signed": True, "leaks": False, "kept": True} | values))


GOOD = Evidence(
    told=(told(),),
    rows=(row(),),
    generations=(finished(),),
    ends={"job_1": ["succeeded"]},
    events=(event(kept=False), event()),
    left={"live": 0},
    budgets={"all total": (0, round(COST * 1e9))},
    probes=(Probe("/health/live", 200, 0.1), Probe("/v1/jobs", 503, 1.9, retry_after=True)),
)


def test_a_run_where_all_went_well() -> None:
    assert laws.broken(GOOD) == {}


BAD: dict[str, tuple[Callable[[Evidence], list[str]], dict[str, Any]]] = {
    "a job without an outcome": (laws.one_outcome, {"rows": ()}),
    "only tries that were given up": (laws.one_outcome, {"rows": (row(state="requeued", requests=0),)}),
    "two outcomes": (laws.one_outcome, {"rows": (row(), row(attempt=2))}),
    "a try after the end": (laws.one_outcome, {"rows": (row(), row(attempt=2, state="requeued"))}),
    "a line without an outcome": (laws.one_outcome, {"lines": {("b", 1): ASK}}),
    "two final events": (laws.one_event, {"ends": {"job_1": ["succeeded", "cancelled"]}}),
    "an answer in two voices": (laws.one_answer, {"told": (told(text=f"{TEXT} {TEXT}"),)}),
    "another request's answer": (laws.one_answer, {"told": (told(text=" ".join(answer_words(31, "gabc1"))),)}),
    "two answers": (laws.one_answer, {"told": (told(), told(text=" ".join(answer_words(ASK, "gdef2"))))}),
    "two jobs for one key": (laws.one_answer, {"told": (told(), told("job_2"))}),
    "a line twice": (laws.one_answer, {"batches": {"b": ["line-1", "line-1"]}}),
    "a line that is missing": (laws.one_answer, {"lines": {("b", 1): 1}, "batches": {"b": []}}),
    "told otherwise": (laws.told_as_recorded, {"told": (told(state="cancelled"),)}),
    "seen by the cloud": (laws.label_kept, {"generations": (finished(label="restricted"),)}),
    "sent to the cloud": (laws.label_kept, {"rows": (row(privacy="restricted"),)}),
    "other tokens": (laws.money_adds_up, {"rows": (row(input_tokens=1),)}),
    "another price": (laws.money_adds_up, {"rows": (row(cost_usd=1.0),)}),
    "paid for nothing": (laws.money_adds_up, {"generations": ()}),
    "answered in two batches of the provider": (
        laws.sent_once,
        {"generations": (finished(engine="provider"), finished(engine="provider"))},
    ),
    "a second try that is nowhere": (laws.second_tries_end, {"second_tries": (2, 1)}),
    "an end that nobody was told of": (laws.ends_are_told, {"events": ()}),
    "an end that nobody took in": (laws.ends_are_told, {"events": (event(kept=False),)}),
    "another end than the one that was told": (laws.ends_are_told, {"events": (event(type="job.failed"),)}),
    "a batch that nobody was told of": (laws.ends_are_told, {"batches": {"b": []}}),
    "an event without a good signature": (laws.ends_are_told, {"events": (event(), event(signed=False))}),
    "an event with an answer": (laws.ends_are_told, {"events": (event(), event(leaks=True))}),
    "an event for somebody else": (laws.ends_are_told, {"events": (event(), event(hook="others"))}),
    "still reserved": (laws.money_adds_up, {"budgets": {"all total": (5, round(COST * 1e9))}}),
    "another balance": (laws.money_adds_up, {"budgets": {"all total": (0, 0)}}),
    "left in the store": (laws.nothing_left, {"left": {"held:*": 1}}),
    "expired too early": (
        laws.no_early_expiry,
        {"told": (told(deadline_s=300.0),), "rows": (row(state="expired", finished_ms=5_000),)},
    ),
    "expired without a deadline": (laws.no_early_expiry, {"rows": (row(state="expired"),)}),
    "a door that hangs": (laws.door_answers, {"probes": (Probe("/v1/jobs", 0, 6.0),)}),
    "a door that is slow": (laws.door_answers, {"probes": (Probe("/v1/jobs", 503, 5.0, retry_after=True),)}),
    "a door that doesn't say when": (laws.door_answers, {"probes": (Probe("/v1/jobs", 503, 0.1),)}),
    "a process that grows": (laws.memory_flat, {"memory": (Memory("api", 1, 200.0, [10**8] * 50 + [2 * 10**8] * 50),)}),
    "a record that never goes": (laws.store_forgets, {"kept": Kept(lasting=1)}),
    "a record that is kept for a day": (laws.store_forgets, {"kept": Kept(longest_s=86_000)}),
    "a store that grows with each job": (laws.store_forgets, {"kept": Kept(bytes=30_000_000)}),
    "a process that gave up": (laws.nobody_gave_up, {"exits": ("worker-cpu (status 1)",)}),
    "an odd answer": (laws.no_odd_answer, {"odd": ("ask 1 got 500",)}),
}


@pytest.mark.parametrize("name", BAD)
def test_a_law_finds_what_breaks_it(name: str) -> None:
    law, values = BAD[name]
    assert law(GOOD) == []
    assert len(law(replace(GOOD, **values))) >= 1


def test_a_job_may_be_parked_and_replayed_before_its_end() -> None:
    parked = row(state="dead", tier="cpu", deployment="hosted-cpu", cost_usd=0.0)
    again = replace(GOOD, rows=(parked, row(attempt=2, requests=0)), ends={"job_1": ["dead", "succeeded"]})
    assert set(laws.broken(again)) == {"one_outcome", "one_event"}
    assert laws.broken(replace(again, replayed=frozenset(["job_1"]))) == {}
    twice = {"rows": (row(attempt=1), row(attempt=2)), "ends": {"job_1": ["succeeded", "succeeded"]}}
    assert {"one_outcome", "one_event"} <= set(laws.broken(replace(GOOD, replayed=frozenset(["job_1"]), **twice)))


def test_a_second_try_has_a_row_of_its_own_or_is_its_jobs_answer() -> None:
    twin = row("job_2", state="cancelled", requests=0, error_code="cancelled", cost_usd=0.0)
    evidence = replace(GOOD, rows=(row(), twin), second_tries=(2, 1))
    assert evidence.twins == {"job_2"}
    assert laws.broken(evidence) == {}


def test_what_waits_for_a_batch_costs_half() -> None:
    half = row(deployment="patient-batch", cost_usd=COST / 2)
    good = replace(GOOD, rows=(half,), generations=(finished(engine="provider"),), budgets={})
    assert laws.money_adds_up(good) == []
    assert laws.money_adds_up(replace(good, rows=(replace(half, cost_usd=COST),)))


def test_the_mock_engines_tokens_are_counted() -> None:
    mock = row(deployment="quick-gpu", tier="gpu", output_tokens=8, cost_usd=0.5, machine_usd=0.5)
    good = replace(GOOD, rows=(mock,), budgets={})
    assert laws.money_adds_up(good) == []
    assert laws.money_adds_up(replace(good, rows=(replace(mock, output_tokens=16),)))


def test_a_process_that_grows_while_it_is_young_is_let_grow() -> None:
    young = Memory("api", 1, 30.0, [10**8] * 50 + [2 * 10**8] * 50)
    warm = Memory("api", 2, 300.0, [10**8] * 20 + [2 * 10**8] * 80)
    assert laws.memory_flat(replace(GOOD, memory=(young, warm))) == []


class TestRecovery:
    LOST = row(attempt=1, state="requeued", requests=0, worker="w1", error_code="worker_lost", claimed_ms=1_100)

    def test_is_from_death_to_the_next_claim(self) -> None:
        rows = (self.LOST, row(attempt=2, worker="w2", claimed_ms=8_000))
        evidence = replace(GOOD, rows=rows, deaths=(Death("w1", 2_000, alone=True),), backs=(7_000,))
        assert laws.recoveries(evidence) == ([6_000], [1_000])
        assert laws.recovers(evidence) == []

    def test_may_not_take_longer_than_it_may(self) -> None:
        rows = (self.LOST, row(attempt=2, worker="w2", claimed_ms=18_000))
        evidence = replace(GOOD, rows=rows, deaths=(Death("w1", 2_000, alone=True),), backs=(1_200,))
        assert len(laws.recovers(evidence)) == 2

    def test_isnt_measured_where_more_than_a_worker_was_away(self) -> None:
        rows = (self.LOST, row(attempt=2, worker="w2", claimed_ms=18_000))
        assert laws.recovers(replace(GOOD, rows=rows, deaths=(Death("w1", 2_000, alone=False),))) == []

    def test_of_a_broker_isnt_measured_where_it_or_the_store_was_taken_away_again(self) -> None:
        rows = (row(claimed_ms=30_000),)
        again = replace(GOOD, rows=rows, backs=(1_000,), outages=(500, 3_000))
        assert laws.recoveries(again) == ([], [])
        assert laws.recovers(again) == []

    def test_but_where_it_was_late_by_then(self) -> None:
        late = replace(GOOD, rows=(row(claimed_ms=30_000),), backs=(1_000,), outages=(500, 20_000))
        assert laws.recoveries(late) == ([], [19_000])
        assert len(laws.recovers(late)) == 1
        assert laws.recoveries(replace(late, outages=(500, 40_000))) == ([], [29_000])
