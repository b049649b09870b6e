"""A batch's lines are held to what the key permitted that made it, whatever they ask for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from fabric.contracts.ids import new_id
from fabric.contracts.job import JobSpec
from fabric.contracts.key import Permissions
from fabric.contracts.limits import Limits
from fabric.ledger import batches
from fabric.ledger.batches import NewBatch
from fabric.store.transitions import Claimed, Outcome

if TYPE_CHECKING:
    from tests.batches.conftest import Desk, Worker

NARROW = Permissions(models=("small",), tiers=("cpu",), regions=("eu",), privacy_floor="confidential")


def made(desk: Desk, lines: list[Any], permissions: Permissions) -> str:
    """As the gateway makes one."""
    now = int(time.time() * 1000)
    new = NewBatch(
        id=new_id("batch"),
        tenant="acme",
        key_id="key_1",
        endpoint="/v1/chat/completions",
        input_file_id=desk.upload(lines),
        completion_window="24h",
        metadata=None,
        created_ms=now,
        expires_ms=now + 86_400_000,
        permissions=permissions.dump(),
    )
    desk.ledger.write(batches.create, new)
    desk.wake()
    return new.id


@pytest.fixture
def ran(worker: Worker) -> dict[str | None, JobSpec]:
    """What reached the worker, by ``custom_id``."""
    specs: dict[str | None, JobSpec] = {}
    reply = worker.answer

    def answer(job: Claimed) -> Outcome:
        specs[job.spec.custom_id] = job.spec
        return reply(job)

    worker.answer = answer
    worker.start()
    return specs


def test_lines_inherit_what_the_key_permits(each_desk: Desk, ran: dict[str | None, JobSpec], line: Any) -> None:
    desk = each_desk
    raised: list[tuple[str, str, str]] = []
    lines = [
        line("plain"),
        line("public", fabric={"privacy": "public"}),
        line("restricted", fabric={"privacy": "restricted"}),
        line("other-model", model="vectors"),
    ]
    with desk.serving(raised=lambda batch, asked, got: raised.append((batch.key_id, asked, got))):
        batch_id = made(desk, lines, NARROW)
        batch = desk.wait(batch_id)
    assert (batch.completed, batch.failed) == (3, 1)
    assert {name: spec.privacy for name, spec in ran.items()} == {
        "plain": "confidential",
        "public": "confidential",
        "restricted": "restricted",
    }
    for spec in ran.values():
        assert (spec.tenant, spec.key_id, spec.batch_id) == ("acme", "key_1", batch_id)
        assert (spec.allowed_tiers, spec.allowed_regions) == (("cpu",), ("eu",))
    (error,) = desk.errors(batch_id)
    assert (error["custom_id"], error["error"]["code"]) == ("other-model", "model_not_found")
    assert error["response"]["status_code"] == 404
    assert sorted(raised) == [("key_1", "internal", "confidential"), ("key_1", "public", "confidential")]


def test_a_batch_without_a_key_is_held_to_nothing(desk: Desk, ran: dict[str | None, JobSpec], line: Any) -> None:
    with desk.serving():
        desk.wait(desk.batch([line("plain", fabric={"privacy": "public"})]))
    (spec,) = ran.values()
    assert (spec.privacy, spec.allowed_tiers, spec.allowed_regions) == ("public", (), ())


def test_lines_wait_for_room_in_their_keys_limit(desk: Desk, ran: dict[str | None, JobSpec], line: Any) -> None:
    """Each takes about half of it, so all of them come through, two at a time; one that never fits says so."""
    lines = [line(f"c-{n}", "word " * 20) for n in range(6)]
    limited = Permissions(limits=Limits(batch_tokens=60))
    with desk.serving():
        batch_id = made(desk, [*lines, line("c-long", "word " * 200)], limited)
        desk.wait(batch_id)
    assert len(desk.output(batch_id)) == 6
    (error,) = desk.errors(batch_id)
    assert (error["custom_id"], error["error"]["code"]) == ("c-long", "request_over_limit")
    assert int(desk.store.redis.hget("fabric:rate:key:key_1", "batch_tokens") or 0) == 0
