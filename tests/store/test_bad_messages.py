"""Messages that no worker can read."""

from __future__ import annotations

from fabric.store import Store, bad_messages
from fabric.store.bad_messages import BadMessage


def test_they_are_counted_and_kept_with_the_reason(store: Store) -> None:
    assert store(bad_messages.set_aside("not JSON", b"{\nx")) == 1
    assert store(bad_messages.set_aside("unknown task", b"\xff\x00")) == 2
    assert store(bad_messages.kept()) == [BadMessage("unknown task", b"\xff\x00"), BadMessage("not JSON", b"{\nx")]
    assert store(bad_messages.count()) == 2


def test_what_the_broker_keeps_is_only_counted(store: Store) -> None:
    store(bad_messages.set_aside("not JSON"))
    assert store(bad_messages.kept()) == []
    assert store(bad_messages.count()) == 1


def test_a_few_and_the_start_of_each(store: Store) -> None:
    for number in range(bad_messages.KEPT + 1):
        store(bad_messages.set_aside("not JSON", b"%d" % number + b" " * bad_messages.BYTES_KEPT))
    kept = store(bad_messages.kept())
    assert len(kept) == bad_messages.KEPT
    assert kept[0].body.startswith(b"%d" % bad_messages.KEPT)
    assert {len(message.body) for message in kept} == {bad_messages.BYTES_KEPT}
