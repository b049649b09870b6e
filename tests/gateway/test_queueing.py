"""Place in the queue and expected time, from values alone."""

from __future__ import annotations

from fabric.contracts.catalog import Catalog, Deployment, Model
from fabric.contracts.job import Priority
from fabric.contracts.worker import WorkerInfo
from fabric.gateway.queueing import Place, backlog_s, place
from fabric.store.transitions import Lane, Room

MODEL = Model(
    name="m",
    deployments=(
        Deployment(name="m-cpu", engine="mock", tier="cpu"),
        Deployment(name="m-gpu", engine="mock", tier="gpu"),
    ),
)


def lane(length: int, priority: Priority = "standard", tenant: str = "t", model: str = "m", due_ms: int = 100) -> Lane:
    return Lane(f"{priority}|{tenant}|{model}", priority, tenant, model, length, due_ms)


def worker(name: str, capacity: dict[str, int], *, draining: bool = False) -> WorkerInfo:
    return WorkerInfo(name, "cpu", "host", 1, 0, {}, capacity, {}, draining)


def room(*lanes: Lane, workers: tuple[WorkerInfo, ...] = ()) -> Room:
    return Room(lanes, {}, workers)


def position(own: Lane, rank: int, *others: Lane) -> int:
    found = place(own.name, rank, room(own, *others), MODEL, {})
    assert found is not None
    return found.position


class TestPosition:
    def test_alone_it_is_the_rank(self) -> None:
        assert [position(lane(9), rank) for rank in (0, 1, 8)] == [0, 1, 8]

    def test_higher_classes_go_first_and_lower_ones_last(self) -> None:
        assert position(lane(1), 0, lane(5, "interactive"), lane(7, "batch")) == 5
        assert position(lane(1, "batch"), 0, lane(5, "interactive"), lane(7)) == 12

    def test_other_models_wait_for_other_places(self) -> None:
        assert position(lane(3), 2, lane(50, "interactive", model="other")) == 2

    def test_tenants_of_one_class_take_turns_the_older_head_first(self) -> None:
        assert position(lane(9, due_ms=100), 3, lane(9, tenant="u", due_ms=50)) == 3 + 4
        assert position(lane(9, due_ms=100), 3, lane(9, tenant="u", due_ms=200)) == 3 + 3
        assert position(lane(9, due_ms=100), 3, lane(2, tenant="u", due_ms=50)) == 3 + 2

    def test_two_heads_are_never_both_last(self) -> None:
        one, two = lane(1, tenant="a", due_ms=100), lane(1, tenant="b", due_ms=100)
        assert {position(one, 0, two), position(two, 0, one)} == {0, 1}

    def test_a_lane_that_has_gone_says_nothing(self) -> None:
        assert place("standard|t|m", 0, room(lane(1, tenant="u")), MODEL, {}) is None


class TestTime:
    def test_what_is_held_over_how_long_it_is_held(self) -> None:
        workers = (worker("a", {"m-cpu": 4}), worker("b", {"m-cpu": 4}))
        found = place("standard|t|m", 15, room(lane(16), workers=workers), MODEL, {"m-cpu": 2.0})
        assert found == Place(15, 16 * 2.0 / 8)

    def test_deployments_work_side_by_side(self) -> None:
        workers = (worker("a", {"m-cpu": 2}), worker("b", {"m-gpu": 30}))
        found = place("standard|t|m", 15, room(lane(16), workers=workers), MODEL, {"m-cpu": 2.0, "m-gpu": 10.0})
        assert found == Place(15, 16 / (1 + 3))

    def test_who_is_leaving_does_not_count(self) -> None:
        workers = (worker("a", {"m-cpu": 4}), worker("b", {"m-cpu": 4}, draining=True))
        found = place("standard|t|m", 0, room(lane(1), workers=workers), MODEL, {"m-cpu": 2.0})
        assert found == Place(0, 0.5)

    def test_it_is_unknown_without_workers_or_without_a_pace_or_a_model(self) -> None:
        workers = (worker("a", {"m-cpu": 4, "other": 4}),)
        assert place("standard|t|m", 0, room(lane(1)), MODEL, {"m-cpu": 1.0}) == Place(0, None)
        assert place("standard|t|m", 0, room(lane(1), workers=workers), MODEL, {"other": 1.0}) == Place(0, None)
        assert place("standard|t|m", 0, room(lane(1), workers=workers), MODEL, {"m-cpu": 0.0}) == Place(0, None)
        assert place("standard|t|m", 0, room(lane(1), workers=workers), None, {"m-cpu": 1.0}) == Place(0, None)


class TestBacklogSeconds:
    CATALOG = Catalog(models=(MODEL,))

    def test_it_is_what_the_workers_would_need(self) -> None:
        waiting = room(lane(30), lane(10, "batch"), workers=(worker("w", {"m-cpu": 4}),))
        assert backlog_s("cpu", self.CATALOG, waiting, {"m-cpu": 0.5}) == 40 / (4 / 0.5)

    def test_nothing_waits_nothing_is_needed(self) -> None:
        assert backlog_s("cpu", self.CATALOG, room(), {}) == 0

    def test_a_tier_without_workers_shows_what_waits_for_it(self) -> None:
        waiting = room(lane(3), workers=(worker("w", {"m-cpu": 4}),))
        assert backlog_s("gpu", self.CATALOG, waiting, {}) == 3
        assert backlog_s("gpu", self.CATALOG, waiting, {"m-gpu": 2.0}) == 6

    def test_other_tiers_models_do_not_count(self) -> None:
        assert backlog_s("cloud", self.CATALOG, room(lane(3)), {}) == 0
