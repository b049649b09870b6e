"""What schedulers say of the broker, and what the door makes of it."""

from __future__ import annotations

import pytest

from fabric.store import Command, Store, broker_state


@pytest.mark.parametrize(
    ("said", "away"),
    [
        ([], False),
        ([broker_state.works()], False),
        ([broker_state.away()], True),
        ([broker_state.works(), broker_state.away()], False),
        ([broker_state.away(), broker_state.works()], False),
    ],
    ids=["nobody looks", "works", "away", "one gets through", "back"],
)
def test_one_that_gets_through_is_enough(store: Store, said: list[Command[None]], away: bool) -> None:
    for word in said:
        store(word)
    assert store(broker_state.is_away()) is away


def test_no_word_counts_for_long(store: Store) -> None:
    store(broker_state.works())
    store(broker_state.away())
    assert 0 < store.redis.pttl("fabric:broker:works") <= 1_500
    assert 0 < store.redis.pttl("fabric:broker:away") <= 10_000
    store.redis.delete("fabric:broker:works")  # as when its time is over
    assert store(broker_state.is_away())
