"""Which job is in which provider batch: until its end is stored, so that what was paid for is found again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fabric.store import Store, provider_batches, transitions

if TYPE_CHECKING:
    from tests.store.conftest import Jobs

PLACE, GROUP, KNOWN = "small-cpu", "batch_1", b'{"id":"batch_1"}'


def listed(store: Store, *job_ids: str) -> list[bool]:
    return [known != b"" for known in store(provider_batches.find(PLACE, job_ids))]


def test_who_has_an_answer_stays_until_it_is_stored(jobs: Jobs, store: Store) -> None:
    ended, running = jobs.running(), jobs.running()
    queued = jobs.running()
    jobs.commit(ended)
    store(transitions.hand_back("w1", [queued]))
    assert store(provider_batches.enlist(PLACE, GROUP, KNOWN, [ended, running, queued])) == 3
    assert store(provider_batches.release(PLACE, [ended, running, queued], answered=True)) == []
    assert listed(store, ended, running, queued) == [False, True, True]
    jobs.commit(running)
    assert store(provider_batches.sweep(PLACE, 0)) == (0, [])
    assert listed(store, running, queued) == [False, True]


@pytest.mark.parametrize("withdrawn", [False, True])
def test_who_was_withdrawn_goes_at_once(jobs: Jobs, store: Store, withdrawn: bool) -> None:
    running = jobs.running()
    store(provider_batches.enlist(PLACE, GROUP, KNOWN, [running]))
    assert store(provider_batches.release(PLACE, [running], withdrawn=withdrawn)) == [KNOWN]
    assert listed(store, running) == [False]
