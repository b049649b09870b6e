"""What a batch's plan is made from: the ways that are open to a group of lines, and the room that there is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fabric.contracts.breaker import OpenBreaker
from fabric.contracts.catalog import Catalog
from fabric.contracts.experience import AnswerLength, Experience, Pace, survival
from fabric.contracts.job import JobSpec
from fabric.routing import DeploymentState, World
from fabric.routing.batch_outlook import rooms_of, ways_of
from fabric.settings.batch_apis import with_batch_apis

CHAT = "/v1/chat/completions"
NOW_MS = 1_000_000_000
PRICE = {"input_per_million": 100.0, "output_per_million": 1_000.0}
CATALOG = Catalog.model_validate(
    {
        "models": [
            {
                "name": "m",
                "deployments": [
                    {"name": "own", "engine": "mock", "tier": "cpu", "price": {"machine_usd_per_hour": 3.6}},
                    {"name": "far", "engine": "mock", "tier": "cloud", "price": PRICE},
                ],
            }
        ]
    }
)
SPEC = JobSpec("job_1", CHAT, "m", priority="batch", prompt_tokens=100, max_output_tokens=50, needs=("chat",))
#: Ten tokens an answer but for one in ten, which has 50.
LENGTH = AnswerLength(
    100, NOW_MS, 14.0, survival(*[[90.0 * (n == 6) + 10.0 * (n == 10) for n in range(33)], [0.0] * 33])
)
PACE = Pace(50, NOW_MS, 2.0, base_s=0.5, per_prompt_token_s=0.01, per_output_token_s=0.1, first_tokens=50, queue_s=0.25)


def world(length: AnswerLength | None = LENGTH, **states: DeploymentState) -> World:
    paces = {(CHAT, name): PACE for name in states}
    return World(states, Experience(paces, {(CHAT, "m"): length} if length else {}), NOW_MS)


BOTH = world(own=DeploymentState(1, 4, 8), far=DeploymentState(1, 4, 8))


def test_time_and_money_of_a_line() -> None:
    own, far = sorted(ways_of(SPEC, CATALOG, "h", BOTH).ways, key=lambda way: way.place, reverse=True)
    assert (own.place, far.place) == ("own", "far")
    answer = LENGTH.expected(50)
    assert own.service_s == far.service_s == pytest.approx(0.5 + 1.0 + 0.1 * answer)
    # A tenth of a cent is an hour of a slot's second: machines cost, and don't count against a cap.
    assert own.cost_usd == pytest.approx(own.service_s / 4 * 3.6 / 3600)
    assert own.billed_usd == 0
    assert far.cost_usd == far.billed_usd == pytest.approx((100 * 100 + answer * 1_000) / 1e6)
    assert own.sure and far.sure
    # One in twenty is longer than 32 tokens, if not longer than 50.
    assert 0.1 * (32 - answer) <= own.tail_s <= 0.1 * (50 - answer)


def test_what_is_not_measured_is_not_sure() -> None:
    assert not any(way.sure for way in ways_of(SPEC, CATALOG, "h", world(None, own=DeploymentState(1, 4, 8))).ways)


def test_only_where_somebody_works_and_the_label_lets_it() -> None:
    assert [way.place for way in ways_of(SPEC, CATALOG, "h", world(far=DeploymentState(1, 4, 8))).ways] == ["far"]
    restricted = ways_of(replace(SPEC, privacy="restricted"), CATALOG, "h", BOTH)
    assert ([way.place for way in restricted.ways], restricted.ended) == (["own"], False)


def test_what_may_go_nowhere_ends_and_what_may_go_later_waits() -> None:
    assert ways_of(replace(SPEC, needs=("vision",)), CATALOG, "h", BOTH).ended
    sick = DeploymentState(1, 4, 8, breaker=OpenBreaker(True, True, NOW_MS, "errors"))
    only_far = replace(SPEC, allowed_tiers=("cloud",))
    assert ways_of(only_far, CATALOG, "h", world(far=sick)) == ((), False)
    assert not ways_of(SPEC, CATALOG, "h", World(now_ms=NOW_MS)).ended


class TestRoom:
    def rooms(self, world: World, own: dict[str, int] | None = None, busy_s: dict[str, float] | None = None) -> Any:
        places = CATALOG.by_deployment.values()
        return rooms_of(places, CHAT, world, own or {}, busy_s or {}, window=100)

    def test_others_come_first(self) -> None:
        found = self.rooms(world(own=DeploymentState(1, 4, 8, busy=6)))
        assert set(found) == {"own"}
        assert (found["own"].slots, found["own"].wait_s) == (4, 0.25 + 6 * 2.0 / 4)

    def test_its_own_lines_count_as_long_as_they_take(self) -> None:
        found = self.rooms(world(own=DeploymentState(1, 4, 8, busy=6)), {"own": 6}, {"own": 20.0})
        assert found["own"].wait_s == 0.25 + 20.0 / 4

    def test_behind_a_breaker_there_is_room_for_a_probe(self) -> None:
        probing = DeploymentState(1, 4, 8, breaker=OpenBreaker(True, False, NOW_MS, "errors"))
        assert self.rooms(world(far=probing))["far"].slots == 1


class TestProvidersBatch:
    def catalog(self) -> Catalog:
        hosted = {"name": "far", "engine": "openai", "tier": "cloud", "price": {**PRICE, "batch_discount": 0.5}}
        batch_api = {"expected_s": 3_600, "reserve_s": 300}
        plain = {"models": [{"name": "m", "deployments": [{**hosted, "batch_api": batch_api}]}]}
        return with_batch_apis(Catalog.model_validate(plain))

    def state(self) -> World:
        catalog = self.catalog()
        return World({name: DeploymentState(1, 5_000, 5_000) for name in catalog.by_deployment}, now_ms=NOW_MS)

    def test_it_is_cheaper_and_takes_as_long_as_it_takes(self) -> None:
        spec = replace(SPEC, deadline_ms=NOW_MS + 7_200_000)
        by_place = {way.place: way for way in ways_of(spec, self.catalog(), "h", self.state()).ways}
        (waiting,) = (way for name, way in by_place.items() if name != "far")
        assert waiting.cost_usd == pytest.approx(by_place["far"].cost_usd / 2)
        assert (waiting.service_s, waiting.tail_s, waiting.sure) == (3_900, 0, True)

    def test_near_the_deadline_it_is_out(self) -> None:
        spec = replace(SPEC, deadline_ms=NOW_MS + 3_000_000)
        assert [way.place for way in ways_of(spec, self.catalog(), "h", self.state()).ways] == ["far"]

    def test_no_more_than_may_be_in_the_store(self) -> None:
        rooms = rooms_of(self.catalog().by_deployment.values(), CHAT, self.state(), {}, {}, window=100)
        assert sorted(room.slots for room in rooms.values()) == [100, 5_000]
