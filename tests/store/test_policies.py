"""The texts that decisions were made under."""

from __future__ import annotations

from fabric.store import Store, policies


def test_a_text_is_found_by_its_hash(store: Store) -> None:
    store(policies.keep("a", b'{"x": 1}'))
    store(policies.keep("a", b'{"x": 2}'))
    assert store(policies.texts(["a", "b"])) == [{"x": 1}, None]


def test_the_ones_that_were_used_last_are_kept(store: Store) -> None:
    for name in ("a", "b"):
        store(policies.keep(name, b"{}", kept=2))
    store.redis.zadd("fabric:policies:used", {"b": 1})
    store(policies.keep("c", b"{}", kept=2))
    assert store(policies.texts(["a", "b", "c"])) == [{}, None, {}]
