"""Busy processes write the audit trail: in bulk, off everybody's way, and the head is kept in the store."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import text

from fabric.contracts.errors import Unavailable
from fabric.contracts.secret import Secrets
from fabric.ledger import Ledger, audit, keys
from fabric.ledger.audit import Event, Head, Row
from fabric.ledger.keys import NewKey
from fabric.store import Store, audit_head
from fabric.trail import Trail, keep_head

SECRETS = Secrets(["s" * 32])


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    ledger = Ledger(ledger_url, wait_s=20)
    yield ledger
    ledger.close()


@pytest.fixture
def trail(ledger_url: str, valkey: Any) -> Iterator[Trail]:
    trail = Trail(Ledger(ledger_url, connections=1), SECRETS, Store(valkey.url), together_s=0.01)
    yield trail
    trail.close()


def rows(ledger: Ledger) -> list[Row]:
    with ledger.reading() as connection:
        return list(audit.rows(connection))


def told(ledger: Ledger) -> list[tuple[str, str, str | None, int]]:
    return [(row.action, row.actor, row.subject, row.count) for row in rows(ledger)]


def head_in(store: Store) -> str | None:
    return store(audit_head.kept())


def test_alike_events_become_one_row(trail: Trail, ledger: Ledger) -> None:
    for _ in range(1_000):
        trail.note("request.blocked", "key_1", tenant="acme", detail={"reason": "privacy"})
    trail.note("request.blocked", "key_1", tenant="acme", detail={"reason": "permission"})
    trail.note("dead_letter.replayed", "key_1", tenant="acme", subject="job_1")
    trail.note("dead_letter.replayed", "key_1", tenant="acme", subject="job_2")
    trail.flush()
    assert told(ledger) == [
        ("request.blocked", "key_1", None, 1_000),
        ("request.blocked", "key_1", None, 1),
        ("dead_letter.replayed", "key_1", "job_1", 1),
        ("dead_letter.replayed", "key_1", "job_2", 1),
    ]
    assert ledger.read(audit.verify, SECRETS).whole


def test_a_flood_of_kinds_is_bounded_and_counted(trail: Trail, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fabric.trail._KINDS", 10)
    for number in range(25):
        trail.note("dead_letter.dropped", "key_1", subject=f"job_{number}")
    trail.flush()
    assert len(rows(ledger)) == 11
    assert told(ledger)[-1] == ("audit.lost", "fabric", None, 15)


def test_it_writes_by_itself_and_what_is_left_at_the_end(ledger_url: str, valkey: Any, ledger: Ledger) -> None:
    trail = Trail(Ledger(ledger_url, connections=1), SECRETS, Store(valkey.url), together_s=30)
    trail.start()
    trail.note("dead_letter.dropped", "open", subject="job_1")
    trail.close()
    assert told(ledger) == [("dead_letter.dropped", "open", "job_1", 1)]


def test_nothing_is_lost_while_the_ledger_is_away(
    trail: Trail, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = ledger.write(keys.create, SECRETS, NewKey("acme", ("read",), 1, "cli"))
    write = Ledger.write

    def away(*args: Any, **kwargs: Any) -> Any:
        raise Unavailable("away")

    trail.note("request.blocked", "key_1")
    trail.first_use(made.id)
    trail.policy_in_force("h1")
    monkeypatch.setattr(Ledger, "write", away)
    for _ in range(2):
        with pytest.raises(Unavailable):
            trail.flush()
        trail.note("request.blocked", "key_1")
    monkeypatch.setattr(Ledger, "write", write)
    trail.flush()
    assert told(ledger)[1:] == [
        ("key.first_used", made.id, made.id, 1),
        ("request.blocked", "key_1", None, 3),
        ("policy.changed", "fabric", None, 1),
    ]


def test_the_first_use_of_a_key_is_one_row_however_many_saw_it(trail: Trail, ledger: Ledger) -> None:
    made, _ = ledger.write(keys.create, SECRETS, NewKey("acme", ("read",), 1, "cli"))
    for _ in range(3):
        trail.first_use(made.id)
        trail.flush()
    assert [row.action for row in rows(ledger)] == ["key.created", "key.first_used"]


def test_a_policy_is_written_down_when_it_is_another(trail: Trail, ledger: Ledger) -> None:
    for policy in ("h1", "h1", "h2", "h2", "h1"):
        trail.policy_in_force(policy)
        trail.flush()
    details = [row.object()["detail"] for row in rows(ledger)]
    assert [(detail["before"], detail["policy_hash"]) for detail in details] == [
        (None, "h1"),
        ("h1", "h2"),
        ("h2", "h1"),
    ]


class TestHead:
    def test_it_is_kept_and_moves_on(self, trail: Trail, ledger: Ledger, store: Store) -> None:
        assert head_in(store) is None
        for number in (1, 2):
            trail.note("request.blocked", f"key_{number}")
            trail.flush()
            assert head_in(store) == str(ledger.read(audit.head)) and Head.parse(str(head_in(store))).seq == number

    def test_a_later_one_isnt_put_back(self, store: Store) -> None:
        assert store(audit_head.keep(7, "7:aa"))
        assert not store(audit_head.keep(7, "7:bb")) and not store(audit_head.keep(6, "6:cc"))
        assert head_in(store) == "7:aa"

    def test_the_evidence_of_a_cut_stays(
        self, trail: Trail, ledger: Ledger, store: Store, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Rows that grow over the cut don't take its place."""
        for number in range(3):
            trail.note("request.blocked", f"key_{number}")
            trail.flush()
        kept = head_in(store)
        with ledger.writing() as connection:
            if connection.dialect.name == "sqlite":
                connection.execute(text("DROP TRIGGER audit_no_delete"))
                connection.execute(text("DELETE FROM audit WHERE seq > 1"))
            else:
                connection.execute(text("ALTER TABLE audit DISABLE TRIGGER audit_append_only"))
                connection.execute(text("DELETE FROM audit WHERE seq > 1"))
                connection.execute(text("ALTER TABLE audit ENABLE TRIGGER audit_append_only"))
        with caplog.at_level(logging.ERROR):
            for number in range(10, 14):
                trail.note("request.blocked", f"key_{number}")
                trail.flush()
        assert head_in(store) == kept
        assert "cut short" in caplog.text and "isn't the one that it was" in caplog.text
        problems = ledger.read(audit.verify, SECRETS, [Head.parse(str(kept))]).problems
        assert problems == ["row 3 isn't the one that was the head when its hash was kept"]

    def test_a_store_that_is_away_keeps_nothing_up(self, ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
        head = ledger.write(audit.append, SECRETS, [Event("request.blocked", "key_1", 1)])
        keep_head(ledger, Store("unix:///nowhere/at/all", timeout_s=0.1), head)
        assert "isn't kept" in caplog.text
