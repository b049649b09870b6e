"""What the heartbeats add up to."""

from __future__ import annotations

from fabric.contracts.catalog import Catalog
from fabric.contracts.worker import WorkerInfo
from fabric.routing import DeploymentState, World, world_of

CATALOG = Catalog.model_validate(
    {"models": [{"name": "m", "deployments": [{"name": n, "engine": "mock", "tier": "cpu"} for n in "ab"]}]}
)


def worker(slots: dict[str, int], *, draining: bool = False, running: dict[str, int] | None = None) -> WorkerInfo:
    capacity = {name: 0 if draining else 2 * count for name, count in slots.items()}
    return WorkerInfo("w", "cpu", "host", 1, 0, slots, capacity, running or {}, draining)


def world(*workers: WorkerInfo, **busy: int) -> World:
    return world_of(workers, busy, CATALOG)


def test_workers_of_a_deployment_add_up() -> None:
    found = world(worker({"a": 4}), worker({"a": 2, "b": 1}), a=5)
    assert found.of("a") == DeploymentState(workers=2, slots=6, capacity=12, busy=5)
    assert found.of("b") == DeploymentState(workers=1, slots=1, capacity=2, busy=0)


def test_a_deployment_without_workers_has_no_room() -> None:
    assert world(worker({"a": 4})).of("b").free(interactive=True) == 0


def test_a_deployment_that_is_not_in_the_catalogue_is_left_out() -> None:
    assert world(worker({"gone": 4})).deployments == {}


def test_a_full_one_has_no_room_and_never_less() -> None:
    full = DeploymentState(workers=1, slots=2, capacity=4, busy=9)
    assert full.free(interactive=False) == full.free(interactive=True) == 0


def test_what_a_draining_worker_holds_takes_no_room_from_the_others() -> None:
    leaving = worker({"a": 4}, draining=True, running={"a": 7})
    staying = worker({"a": 4})
    found = world(leaving, staying, a=7)
    assert (found.of("a").workers, found.of("a").free(interactive=False)) == (1, 8)


def test_a_worker_that_drains_alone_gets_nothing() -> None:
    leaving = worker({"a": 4}, draining=True, running={"a": 3})
    assert world(leaving, a=3).of("a").free(interactive=True) == 0


def test_an_engine_that_lost_its_slots_gets_nothing() -> None:
    assert world(worker({"a": 0})).of("a").free(interactive=True) == 0
