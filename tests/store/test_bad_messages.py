"""Messages that no worker can read are kept, a bounded number of them."""

from __future__ import annotations

from fabric.store import Store, bad_messages


def test_the_newest_is_the_first(store: Store) -> None:
    assert store(bad_messages.set_aside("not JSON", b"{\nx")) == 1
    assert store(bad_messages.set_aside("unknown task", b"\xff\x00", "fabric.cpu.small\ncpu")) == 2
    kept = store(bad_messages.kept())
    assert [(message.reason, message.queue, message.body) for message in kept] == [
        ("unknown task", "fabric.cpu.small cpu", b"\xff\x00"),
        ("not JSON", "", b"{\nx"),
    ]
    assert kept[0].at_ms >= kept[1].at_ms > 0
    assert store(bad_messages.count()) == store(bad_messages.kept_count()) == 2


def test_few_are_kept_and_only_their_start(store: Store) -> None:
    for number in range(bad_messages.KEPT + 1):
        store(bad_messages.set_aside("not JSON", b"%d" % number + b" " * bad_messages.BYTES_KEPT))
    kept = store(bad_messages.kept())
    assert len(kept) == bad_messages.KEPT
    assert kept[0].body.startswith(b"%d" % bad_messages.KEPT)
    assert {len(message.body) for message in kept} == {bad_messages.BYTES_KEPT}
