"""Batches with a deadline or a cap: planned as a whole, handed over by the plan, and planned again while they run.

The scheduler and the store are the real ones; a worker stands behind each place that answers as the test says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from fabric.batches import planning
from fabric.batches.service import BatchService
from fabric.contracts.budget import NANO
from fabric.contracts.catalog import Catalog, Deployment
from fabric.contracts.ids import new_id
from fabric.contracts.job import JobState, Measures, Usage
from fabric.contracts.message import Chunk
from fabric.contracts.worker import WorkerInfo
from fabric.ledger import batches, lines, usage
from fabric.ledger.batches import Batch, NewBatch, batch_object
from fabric.recorder import Recorder
from fabric.store import budgets, reads, transitions
from fabric.store.transitions import Claimed, Outcome
from scheduler.loop import Loop

if TYPE_CHECKING:
    from tests.batches.conftest import Desk

HOUR_MS = 3_600_000
CHAT = "/v1/chat/completions"
#: A thousandth of a dollar for each token of an answer.
PRICED = {"output_per_million": 1_000.0}
CATALOG = Catalog.model_validate(
    {
        "models": [
            {
                "name": "small",
                "deployments": [
                    {"name": "local", "engine": "mock", "tier": "cpu"},
                    {"name": "cloud", "engine": "mock", "tier": "cloud", "price": PRICED},
                ],
            },
            {
                "name": "hosted",
                "deployments": [
                    {"name": "dear", "engine": "mock", "tier": "cloud", "price": PRICED},
                    {"name": "dearer", "engine": "mock", "tier": "cloud", "price": {"output_per_million": 4_000.0}},
                ],
            },
        ]
    }
)


def answer(job: Claimed, *, engine_s: float = 1.0, tokens: int = 10, usd: float = 0.0) -> Outcome:
    choice = {"index": 0, "message": {"role": "assistant", "content": "done"}, "finish_reason": "stop"}
    used = {"prompt_tokens": 3, "completion_tokens": tokens, "total_tokens": 3 + tokens}
    result = orjson.dumps({"object": "chat.completion", "choices": [choice], "usage": used})
    measures = Measures(engine_s=engine_s, first_token_s=engine_s / 10, usage=Usage(3, tokens), cost_usd=usd).dump()
    return Outcome(job.spec.id, job.attempt, JobState.SUCCEEDED, result, measures=measures)


@dataclass
class House:
    """A fabric that goes on a step at a time. ``sent``: what reached each place and wasn't answered; ``at``: the place
    that answers now."""

    desk: Desk
    service: BatchService
    loop: Loop
    recorder: Recorder
    sent: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    ran: Counter[str] = field(default_factory=Counter)
    at: str = ""

    def connect(self) -> None:
        """As ``Sender``."""

    def send(self, messages: Iterable[tuple[Deployment, Chunk]]) -> None:
        for deployment, chunk in messages:
            self.sent.setdefault(deployment.name, []).extend(chunk.jobs)

    def works(self, *, draining: bool = False, **slots: int) -> None:
        for name, count in slots.items():
            holds = {name: len(self.sent.get(name, []))}
            info = WorkerInfo(name, "cpu", "h", 1, 0, {name: count}, {name: 2 * count}, holds, draining)
            self.desk.store(transitions.heartbeat(info, []))

    def begin(self, requests: Iterable[dict[str, Any]], window_ms: int = HOUR_MS, **options: float) -> str:
        now = self.now_ms()
        new = NewBatch(
            id=new_id("batch"),
            tenant="default",
            key_id=None,
            endpoint=CHAT,
            input_file_id=self.desk.upload(requests),
            completion_window="24h",
            metadata=None,
            created_ms=now,
            expires_ms=now + window_ms,
            options=orjson.dumps(options or {"deadline_s": window_ms / 1000}).decode(),
        )
        self.desk.ledger.write(batches.create, new)
        self.until(lambda: self.found(new.id).status == "in_progress")
        return new.id

    def now_ms(self) -> int:
        return int(self.desk.store.redis.time()[0]) * 1000

    def look(self) -> None:
        """All that there is to do without a worker."""
        for _ in range(100):
            moved = self.service.round()
            if not (self.loop.round() or moved):
                return
        raise AssertionError("it never rests")

    def run(self, reply: Callable[[Claimed], Outcome] = answer, **most: int) -> int:
        """The workers answer what they have, or ``most`` of a place; answers how many that was."""
        done = 0
        for name, jobs in self.sent.items():
            now, self.sent[name] = jobs[: most.get(name, len(jobs))], jobs[most.get(name, len(jobs)) :]
            claimed = self.desk.store(transitions.claim(name, now)) if now else []
            self.ran.update({name: len(claimed)})
            self.at = name
            outcomes = [self.sealed(job, reply(job)) for job in claimed]
            done += sum(self.desk.store(transitions.commit(outcomes))) if outcomes else 0
        while self.desk.store.redis.xlen(reads.COMPLETIONS):
            self.recorder.step()
        return done

    def sealed(self, job: Claimed, outcome: Outcome) -> Outcome:
        assert outcome.result is not None
        return replace(outcome, result=self.desk.succeed(job, outcome.result).result)

    def until(self, reached: Callable[[], bool], reply: Callable[[Claimed], Outcome] = answer) -> None:
        for _ in range(400):
            self.look()
            if reached():
                return
            self.run(reply)
        raise AssertionError("it took too many turns")

    def finish(self, batch_id: str, reply: Callable[[Claimed], Outcome] = answer) -> Batch:
        self.until(lambda: self.found(batch_id).status not in batches.UNFINISHED, reply)
        return self.found(batch_id)

    def found(self, batch_id: str) -> Batch:
        return self.desk.found(batch_id)

    def plan(self, batch_id: str) -> dict[str, Any]:
        plan: dict[str, Any] = batch_object(self.found(batch_id))["fabric"]["plan"]
        return plan

    def planned(self, batch_id: str) -> dict[str, int]:
        """Place -> lines that the newest plan has for it, and those that are there."""
        return {p["deployment"]: p["lines"] + p["in_hand"] for p in self.plan(batch_id)["places"]}

    def in_hand(self, batch_id: str) -> dict[str, int]:
        return {p["deployment"]: p["in_hand"] for p in self.plan(batch_id)["places"]}


@pytest.fixture
def desk(desk: Desk) -> Desk:
    return replace(desk, catalog=CATALOG)


def house_of(desk: Desk, **options: Any) -> House:
    house = House(desk, None, None, desk.recorder())  # type: ignore[arg-type]
    house.service = desk.service(**{"replan_s": 0.0} | options)
    house.loop = Loop(desk.store, house, desk.catalog)  # type: ignore[arg-type]
    return house


@pytest.fixture
def house(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> House:
    """Plans again at every look."""
    monkeypatch.setattr(planning, "_RESTS", 0)
    return house_of(desk)


def asked(line: Any, count: int, **body: Any) -> list[dict[str, Any]]:
    return [line(f"{n}", **body) for n in range(count)]


class TestDeadline:
    def test_only_as_many_as_the_deadline_needs_are_paid_for(self, desk: Desk, line: Any) -> None:
        house = house_of(desk, replan_s=1e9)
        house.works(local=2, cloud=50)
        batch_id = house.begin(asked(line, 300))
        house.look()
        # Of a place that nobody has measured a usual answer is expected to take 25.8 s; a tenth of the hour is kept.
        assert house.planned(batch_id) == {"local": 250, "cloud": 50}
        assert house.plan(batch_id)["state"] == "on_course"
        batch = house.finish(batch_id)
        assert (batch.status, batch.completed) == ("completed", 300)
        assert house.ran == {"local": 250, "cloud": 50}

    def test_each_decision_says_that_it_is_the_plans(self, house: House, line: Any) -> None:
        house.works(local=2, cloud=50)
        house.begin(asked(line, 10))
        house.look()
        (job, _), *_ = house.sent["local"]
        record = house.desk.store(reads.job(job))
        assert record is not None
        assert record.decision is not None
        (out,) = record.decision["eliminated"]
        assert (out["deployment"], out["reason"]) == ("cloud", "rule")
        assert "plan" in out["detail"]

    def test_lines_wait_for_the_place_that_the_plan_has(self, house: House, line: Any) -> None:
        """Without a plan what finds no room at home would be paid for."""
        house.works(local=2, cloud=50)
        batch_id = house.begin(asked(line, 100))
        house.look()
        assert len(house.sent["local"]) == 4
        assert "cloud" not in house.sent
        assert house.planned(batch_id) == {"local": 100}

    def test_what_turns_out_quicker_takes_more(self, house: House, line: Any) -> None:
        house.works(local=2, cloud=50)
        batch_id = house.begin(asked(line, 400))
        house.look()
        there_first = house.in_hand(batch_id)["cloud"]
        assert 100 <= there_first < 160
        house.run(cloud=0)  # a second each, where 26 were expected
        house.finish(batch_id)
        assert house.ran["cloud"] <= there_first
        assert house.ran.total() == 400

    def test_a_guess_is_tried_out_before_it_is_paid_for(self, desk: Desk, line: Any) -> None:
        """Nobody has measured either place yet: before the next plan each gets as many lines as it has slots."""
        house = house_of(desk, replan_s=300.0)
        house.works(local=2, cloud=50)
        batch_id = house.begin(asked(line, 400))
        house.look()
        assert house.planned(batch_id) == {"local": 250, "cloud": 150}
        assert {place: len(jobs) for place, jobs in house.sent.items()} == {"local": 2, "cloud": 50}

    def test_what_goes_away_is_planned_around(self, house: House, line: Any) -> None:
        house.works(local=2, cloud=50)
        batch_id = house.begin(asked(line, 100))
        house.look()
        house.works(local=2, draining=True)
        house.look()
        assert house.planned(batch_id) == {"cloud": 96, "local": 4}
        assert house.finish(batch_id).completed == 100

    def test_without_enough_time_it_says_how_much_it_would_take(self, house: House, line: Any) -> None:
        house.works(local=2)
        batch_id = house.begin(asked(line, 500))
        house.look()
        plan = house.plan(batch_id)
        assert (plan["state"], plan["shortfall"]["reason"]) == ("short", "deadline")
        assert plan["shortfall"]["lines"] == 500 - 2 * 139
        assert plan["shortfall"]["within_cap_s"] == pytest.approx(250 * 25.8, rel=0.05)
        assert house.finish(batch_id).completed == 500  # it turned out quicker

    def test_without_anybody_it_waits(self, house: House, line: Any) -> None:
        batch_id = house.begin(asked(line, 5))
        house.look()
        assert house.plan(batch_id)["shortfall"]["reason"] == "nowhere"
        house.works(local=2)
        assert house.finish(batch_id).completed == 5

    def test_groups_of_different_lines_run_beside_each_other(self, house: House, line: Any) -> None:
        """Those of the second model aren't behind those of the first, as they are in the file."""
        house.works(local=2, dear=2)
        requests = asked(line, 300) + [line(f"h{n}", model="hosted") for n in range(20)]
        batch_id = house.begin(requests, window_ms=4 * HOUR_MS)
        house.look()
        assert len(house.sent["local"]) == 4
        assert len(house.sent["dear"]) == 4
        assert house.plan(batch_id)["groups"] == 2
        assert house.finish(batch_id).completed == 320

    def test_a_line_that_may_go_nowhere_says_why(self, house: House, line: Any) -> None:
        house.works(local=2, cloud=2, dear=2)
        restricted = {"privacy": "restricted"}
        batch_id = house.begin([line("ok"), line("no", model="hosted", fabric=restricted)])
        batch = house.finish(batch_id)
        assert (batch.completed, batch.failed) == (1, 1)
        (error,) = house.desk.errors(batch_id)
        assert error["custom_id"] == "no"
        assert "privacy" in error["error"]["message"]


class TestWall:
    def test_the_label_holds_however_near_the_deadline_is(self, house: House, line: Any) -> None:
        house.works(local=1, cloud=50)
        restricted = [line(f"r{n}", fabric={"privacy": "restricted"}) for n in range(200)]
        batch_id = house.begin([*restricted, *asked(line, 50)])
        seen: Counter[tuple[str, str]] = Counter()

        def reply(job: Claimed) -> Outcome:
            seen[job.spec.privacy, house.at] += 1
            return answer(job)

        house.finish(batch_id, reply)
        assert seen["restricted", "cloud"] == 0
        assert seen["restricted", "local"] == 200


class TestCap:
    def taken(self, house: House, batch_id: str) -> int:
        (balance,) = house.desk.store(budgets.balances([(batch_id, "total")]))
        return 0 if balance is None else balance.taken

    def spent(self, house: House, batch_id: str) -> float:
        return house.desk.ledger.read(usage.billed_of_batch, batch_id)

    def test_it_is_never_exceeded_and_nothing_is_dropped_silently(self, house: House, line: Any) -> None:
        """A line may cost 20 thousandths, and costs 10: 99 fit under a dollar, and a last one couldn't be reserved."""
        house.works(dear=4)
        batch_id = house.begin(asked(line, 150, model="hosted", max_tokens=20), max_cost_usd=1.0)

        def reply(job: Claimed) -> Outcome:
            assert self.taken(house, batch_id) <= NANO
            return answer(job, usd=0.01)

        batch = house.finish(batch_id, reply)
        assert batch.status == "completed"
        assert (batch.completed, batch.failed) == (99, 51)
        assert self.spent(house, batch_id) == pytest.approx(0.99)
        errors = house.desk.errors(batch_id)
        assert {error["error"]["code"] for error in errors} == {"batch_cap_used_up"}
        assert "$0.010000 of that is left" in errors[0]["error"]["message"]
        assert house.ran == {"dear": 99}

    def test_what_costs_more_than_expected_takes_from_the_rest(self, house: House, line: Any) -> None:
        house.works(dear=4)
        batch_id = house.begin(asked(line, 100, model="hosted", max_tokens=20), max_cost_usd=1.0)
        batch = house.finish(batch_id, lambda job: answer(job, tokens=20, usd=0.02))
        assert (batch.completed, batch.failed) == (50, 50)
        assert self.spent(house, batch_id) == pytest.approx(1.0)

    def test_no_line_goes_where_it_could_cost_more_than_it_has_reserved(self, house: House, line: Any) -> None:
        """The dear place goes away while lines wait for it: the dearer one takes none of them before there is a plan
        in which it may."""
        house.works(dear=1, dearer=50)
        batch_id = house.begin(asked(line, 5, model="hosted", max_tokens=100), max_cost_usd=2.0)
        house.look()
        assert {job for jobs in house.sent.values() for job in jobs}
        assert set(house.sent) == {"dear"}
        for number in house.desk.ledger.read(lines.handed_over, house.found(batch_id), limit=10):
            record = house.desk.store(reads.job(f"{_job(batch_id, number)}"))
            assert record is not None
            assert record.spec.max_cost_usd == pytest.approx(0.1)

    def test_local_lines_reserve_nothing(self, house: House, line: Any) -> None:
        house.works(local=2)
        batch_id = house.begin(asked(line, 30), max_cost_usd=0.0)
        assert house.finish(batch_id).completed == 30
        assert self.taken(house, batch_id) == 0

    def test_with_money_for_some_those_are_run(self, house: House, line: Any) -> None:
        house.works(local=1, cloud=50)
        batch_id = house.begin(asked(line, 400, max_tokens=300), max_cost_usd=10.0)
        house.look()
        plan = house.plan(batch_id)
        assert plan["shortfall"]["reason"] == "deadline_or_cap"
        assert plan["shortfall"]["in_time_usd"] > 10
        assert plan["shortfall"]["within_cap_s"] > 3_600
        assert plan["reserved_usd"] <= 10

    def test_a_store_that_lost_everything_is_told_what_was_spent(self, house: House, line: Any) -> None:
        house.works(dear=4)
        batch_id = house.begin(asked(line, 150, model="hosted", max_tokens=20), max_cost_usd=1.0)
        house.look()
        house.run(lambda job: answer(job, usd=0.01))
        before = self.spent(house, batch_id)
        assert before > 0
        house.desk.store.redis.flushall()
        house.sent.clear()
        house.works(dear=4)
        house.finish(batch_id, lambda job: answer(job, usd=0.01))
        assert self.spent(house, batch_id) <= 1.0


class TestLife:
    def test_cancelling_stops_what_was_handed_over(self, house: House, line: Any) -> None:
        house.works(local=2)
        batch_id = house.begin(asked(line, 40))
        house.look()
        house.run(local=2)
        house.desk.cancel(batch_id)
        batch = house.finish(batch_id)
        assert (batch.status, batch.completed, batch.failed) == ("cancelled", 2, 38)

    def test_lines_of_jobs_that_were_lost_are_handed_over_again(self, house: House, line: Any) -> None:
        house.works(local=2)
        batch_id = house.begin(asked(line, 40))
        house.look()
        house.desk.store.redis.flushall()
        house.sent.clear()
        house.works(local=2)
        batch = house.finish(batch_id)
        assert (batch.completed, batch.failed) == (40, 0)

    def test_another_service_goes_on(self, house: House, line: Any) -> None:
        house.works(local=2)
        batch_id = house.begin(asked(line, 40))
        house.look()
        house.service._lease.release()
        house.service = house.desk.service(replan_s=0.0)
        assert house.finish(batch_id).completed == 40
        assert house.ran.total() == 40

    def test_nothing_is_left_behind(self, house: House, line: Any) -> None:
        house.works(local=2)
        batch_id = house.begin(asked(line, 4))
        house.finish(batch_id)
        house.look()
        assert house.desk.ledger.read(lines.groups, batch_id) == {}
        assert house.desk.ledger.read(lines.placed, [batch_id]) == {}


def _job(batch_id: str, number: int) -> str:
    from fabric.contracts.ids import line_job_id

    return line_job_id(batch_id, number)
