"""A worker gets the part of a payload that its tier may see, and only of jobs that were sent to its deployment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fabric.contracts.payload import Payload
from fabric.store import Store, reads, transitions
from fabric.store.transitions import NewJob

if TYPE_CHECKING:
    from tests.store.conftest import Jobs

TWO = Payload(b'{"body":"ada@example.com"}', b'{"body":"<EMAIL_1>"}')


@pytest.mark.parametrize(
    ("deployment", "part"), [("a-cpu", TWO.original), ("a-gpu", TWO.original), ("a-cloud", TWO.redacted)]
)
def test_each_tier_gets_its_part(deployment: str, part: bytes, jobs: Jobs, store: Store) -> None:
    job = jobs.dispatched(deployment=deployment, payload=TWO.dump())
    chunk = [(job, jobs.attempts[job])]
    for _ in range(2):  # an answer that was lost is given again
        (claimed,) = store(transitions.claim("w1", chunk, deployment=deployment))
        assert claimed.payload == part


def test_a_fallback_gets_the_part_of_its_own_tier(jobs: Jobs, store: Store) -> None:
    job = jobs.dispatched(deployment="a-cloud", payload=TWO.dump())
    (claimed,) = store(transitions.claim("w1", [(job, jobs.attempts[job])], deployment="a-cloud"))
    assert claimed.payload == TWO.redacted
    store(transitions.hand_back("w1"))
    assert jobs.take() == [job]
    jobs.send(job, "a-cpu")
    (claimed,) = store(transitions.claim("w2", [(job, jobs.attempts[job])], deployment="a-cpu"))
    assert claimed.payload == TWO.original


@pytest.mark.parametrize("size", [0, 1, 9_999, 1_000_000])
def test_parts_of_any_size(size: int, jobs: Jobs, store: Store) -> None:
    payload = Payload(b"\x01" * size, b"\x02\x01" * size)
    job = jobs.dispatched(deployment="a-cloud", payload=payload.dump())
    (claimed,) = store(transitions.claim("w1", [(job, jobs.attempts[job])]))
    assert claimed.payload == payload.redacted


def test_a_message_that_names_a_job_for_another_deployment_gets_nothing(jobs: Jobs, store: Store) -> None:
    """As from somebody who can write to a cloud queue, and knows the ids of jobs at home."""
    job = jobs.dispatched(deployment="a-cpu", payload=b"restricted")
    chunk = [(job, jobs.attempts[job])]
    assert store(transitions.claim("spy", chunk, deployment="a-cloud")) == []
    (claimed,) = store(transitions.claim("w1", chunk, deployment="a-cpu"))
    assert claimed.payload == b"restricted"
    assert store(transitions.claim("spy", chunk, deployment="a-cloud")) == []
    assert store(transitions.claim("w1", chunk, deployment="a-cloud")) == []


def test_placeholders_stay_beside_the_record(jobs: Jobs, store: Store) -> None:
    hidden = b'{"<EMAIL_1>":"ada@example.com"}'
    spec = jobs.spec()
    jobs.accept(NewJob(spec, TWO.dump(), placeholders=hidden))
    assert store(reads.placeholders(spec.id)) == hidden
    assert jobs.record(spec.id).placeholders == hidden
    assert store(reads.placeholders(jobs.queued())) == b""
    assert store(reads.placeholders("job_nobody")) == b""


def test_blocks_are_counted_once_per_job(jobs: Jobs, store: Store) -> None:
    restricted = [NewJob(jobs.spec(privacy="restricted"), b"x", blocked=True) for _ in range(3)]
    jobs.accept(*restricted, NewJob(jobs.spec(), b"x"))
    jobs.accept(*restricted)  # sent again
    assert store(reads.label_blocks()) == {"restricted": 3}
