"""``share_limit``: workers of one account send together no more than its provider takes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from fabric.store import Store
from fabric.store.limits import CHANNEL, News, Seen, Share, share

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.store.conftest import Ear

LIMIT = "l1"
#: So long that no test lives to see its end.
LONG_S = 600.0


@pytest.fixture(autouse=True)
def in_sight(store: Store) -> None:
    """The limit ``l1`` has long been known."""
    store(share(LIMIT, "nobody", seen=Seen(0, LONG_S, 0.0, 1)))
    store.redis.hset(f"fabric:limit:{LIMIT}", mapping={"since": 1, "seen": 1})
    store.redis.delete(f"fabric:limit:{LIMIT}:holders")


def seen(left: int, *, age_s: float = 0.0, reset_s: float = LONG_S, whole: int | None = 100) -> Seen:
    return Seen(left, age_s, reset_s, whole)


def test_nobody_needs_permits_while_no_limit_is_in_sight(store: Store) -> None:
    assert store(share("new", "a", wanted=10)) == Share(0.0, 0, 0.0, False)


def test_when_one_comes_in_sight_all_say_first_what_they_have_sent(store: Store) -> None:
    first = store(share("new", "a", seen=seen(39), recent=15, wanted=50))
    assert (first.permits, first.tells) == (0, True)
    assert 0 < first.more_in_s <= 0.05
    store(share("new", "b", recent=16))
    time.sleep(first.more_in_s + 0.01)
    store(share("new", "b", recent=16))
    got = store(share("new", "a", seen=seen(39), recent=15, wanted=50))
    assert got.permits == 4  # half of what remains for two


def test_permits_are_what_the_provider_says_is_left(store: Store) -> None:
    assert store(share(LIMIT, "a", seen=seen(10), wanted=4)) == Share(0.0, 4, 0.0, True)
    rest = store(share(LIMIT, "a", kept=0, wanted=100))
    assert rest.permits == 6
    none = store(share(LIMIT, "a", wanted=1))
    assert none.permits == 0
    assert LONG_S - 5 < none.more_in_s <= LONG_S + 0.01


def test_two_workers_together_get_no_more(store: Store) -> None:
    got = {"a": store(share(LIMIT, "a", seen=seen(40), wanted=10)).permits, "b": 0}
    got["b"] += store(share(LIMIT, "b", wanted=2)).permits
    for _ in range(20):
        for worker in got:
            got[worker] += store(share(LIMIT, worker, kept=got[worker], wanted=50)).permits
    assert sum(got.values()) == 40
    assert min(got.values()) > 5  # and none takes all that is left at once


def test_what_a_worker_does_not_use_comes_back(store: Store) -> None:
    assert store(share(LIMIT, "a", seen=seen(10), wanted=10)).permits == 10
    held = store(share(LIMIT, "b", wanted=5))
    assert (held.permits, held.more_in_s) == (0, 0.25)  # somebody holds them: soon asked for again
    store(share(LIMIT, "a", kept=2, returned=8))
    assert store(share(LIMIT, "b", wanted=4)).permits == 4


def test_an_answer_that_cannot_have_seen_what_others_send_counts_less(store: Store) -> None:
    store(share(LIMIT, "b", seen=seen(60), wanted=20))  # and has sent none of them yet
    store(share(LIMIT, "a", seen=seen(50), recent=5))
    assert store(share(LIMIT, "b", kept=20, wanted=100)).permits == 13  # half of 50 - 20 - 5


def test_the_older_of_two_answers_does_not_count(store: Store) -> None:
    store(share(LIMIT, "a", seen=seen(3)))
    store(share(LIMIT, "a", seen=seen(80, age_s=5.0)))
    assert store(share(LIMIT, "a", wanted=100)).permits == 3


def test_of_two_answers_that_overtook_each_other_the_lower_counts(store: Store) -> None:
    store(share(LIMIT, "a", seen=seen(3)))
    store(share(LIMIT, "b", seen=seen(9)))
    assert store(share(LIMIT, "a", wanted=100)).permits == 2


def test_when_the_window_is_over_it_is_whole_again(store: Store) -> None:
    store(share(LIMIT, "a", seen=seen(0, reset_s=0.05)))
    assert store(share(LIMIT, "a", wanted=10)).permits == 0
    time.sleep(0.1)
    assert store(share(LIMIT, "a", recent=30, wanted=200)).permits == 70  # 30 may count against the new one


def test_without_a_size_the_most_that_was_seen_is_taken_for_it(store: Store) -> None:
    store(share(LIMIT, "a", seen=seen(19, whole=None)))
    store(share(LIMIT, "a", seen=seen(0, reset_s=0.0, whole=None)))
    time.sleep(0.02)
    assert store(share(LIMIT, "a", wanted=200)).permits == 20


def test_a_worker_that_is_gone_holds_nothing(store: Store) -> None:
    store(share(LIMIT, "gone", seen=seen(30), wanted=30))
    store.redis.hset(f"fabric:limit:{LIMIT}:holders", "gone", "30 1000")
    time.sleep(0.11)  # so that the next answer is no older one
    store(share(LIMIT, "a", seen=seen(30)))
    assert store(share(LIMIT, "a", wanted=100)).permits == 30


def test_a_pause_is_told_to_all_once_and_never_shortened(store: Store, listen: Callable[[str], Ear]) -> None:
    ear = listen(CHANNEL)
    store(share(LIMIT, "a", pause_s=20))
    store(share(LIMIT, "b", pause_s=5))
    store(share("other", "b", seen=seen(5)))
    told = [News.load("\n".join(words).encode()) for words in ear.heard(2)]
    assert told == [News(LIMIT, 20.0, True), News("other", 0.0, True)]
    assert 19 < store(share(LIMIT, "c")).pause_s <= 20


def test_limits_are_forgotten_when_nobody_uses_them(store: Store) -> None:
    store(share(LIMIT, "a", pause_s=20, seen=seen(5), wanted=1))
    for key in (f"fabric:limit:{LIMIT}", f"fabric:limit:{LIMIT}:holders"):
        assert 0 < store.redis.ttl(key) <= 3_601 + LONG_S
