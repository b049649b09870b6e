"""The audit trail: chained, and whatever is done to it without the secret is found. On both kinds of database."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from fabric.contracts.secret import Secrets
from fabric.ledger import Ledger, audit
from fabric.ledger.audit import NO_ROWS, Event, Head

SECRETS = Secrets(["s" * 32])


def event(number: int) -> Event:
    return Event(
        "key.created", "cli", 1_000 + number, tenant="acme", subject=f"key_{number}", detail={"b": 1, "a": [number]}
    )


def write(ledger: Ledger, first: int, count: int, secrets: Secrets = SECRETS) -> Head:
    return ledger.write(audit.append, secrets, [event(number) for number in range(first, first + count)])


def tamper(ledger: Ledger, *statements: str) -> None:
    """As somebody who may do anything with the database."""
    with ledger.writing() as connection:
        if connection.dialect.name == "sqlite":
            before = ["DROP TRIGGER audit_no_update", "DROP TRIGGER audit_no_delete"]
            triggers = connection.execute(text("SELECT sql FROM sqlite_master WHERE type = 'trigger'")).scalars().all()
            after = [str(sql) for sql in triggers]
        else:
            before = ["ALTER TABLE audit DISABLE TRIGGER audit_append_only"]
            after = ["ALTER TABLE audit ENABLE TRIGGER audit_append_only"]
        for statement in (*before, *statements, *after):
            connection.execute(text(statement))


def problems(ledger: Ledger, *heads: Head, secrets: Secrets = SECRETS) -> list[str]:
    return ledger.read(audit.verify, secrets, heads).problems


def test_an_untouched_trail_is_whole(ledger: Ledger) -> None:
    assert ledger.read(audit.verify, SECRETS).head == NO_ROWS
    early = write(ledger, 1, 3)
    late = write(ledger, 4, 2)
    verdict = ledger.read(audit.verify, SECRETS, [early, late, NO_ROWS])
    assert (verdict.rows, verdict.head, verdict.problems) == (5, late, [])
    assert Head.parse(str(late)) == late


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("at_ms", "7"),
        ("action", "'key.revoked'"),
        ("actor", "'key_x'"),
        ("tenant", "'other'"),
        ("tenant", "NULL"),
        ("subject", "'key_y'"),
        ("detail", "'{}'"),
        ("count", "9"),
    ],
)
def test_a_changed_row_is_found(ledger: Ledger, column: str, value: str) -> None:
    write(ledger, 1, 5)
    tamper(ledger, f"UPDATE audit SET {column} = {value} WHERE seq = 3")
    assert problems(ledger) == ["row 3 isn't what was written there after the row before it"]


def test_missing_rows_are_found(ledger: Ledger) -> None:
    write(ledger, 1, 6)
    tamper(ledger, "DELETE FROM audit WHERE seq IN (3, 4)")
    assert "rows 3 to 4 are missing" in problems(ledger)


def test_a_gap_that_was_closed_is_found(ledger: Ledger) -> None:
    write(ledger, 1, 4)
    tamper(ledger, "DELETE FROM audit WHERE seq = 2", "UPDATE audit SET seq = seq - 1 WHERE seq > 2")
    assert problems(ledger)


def test_reordered_rows_are_found(ledger: Ledger) -> None:
    write(ledger, 1, 4)
    swap = [f"UPDATE audit SET seq = {new} WHERE seq = {old}" for old, new in ((2, 99), (3, 2), (99, 3))]
    tamper(ledger, *swap)
    assert len(problems(ledger)) >= 2


def test_a_row_from_elsewhere_is_found(ledger: Ledger) -> None:
    """Who can write but has another secret, or none, can't add a row that counts."""
    write(ledger, 1, 2)
    write(ledger, 3, 1, Secrets(["x" * 32]))
    assert "FABRIC_SECRET doesn't hold" in problems(ledger)[0]
    tamper(ledger, f"UPDATE audit SET secret_id = '{SECRETS.id}' WHERE seq = 3")
    assert problems(ledger) == ["row 3 isn't what was written there after the row before it"]


def test_a_cut_off_end_is_found_by_a_head_that_was_kept(ledger: Ledger) -> None:
    write(ledger, 1, 3)
    head = write(ledger, 4, 2)
    tamper(ledger, "DELETE FROM audit WHERE seq > 3")
    assert problems(ledger) == []
    assert problems(ledger, head) == ["the end was cut off: rows 4 to 5 are missing"]
    write(ledger, 40, 3)  # it grows again, with other rows
    assert problems(ledger, head) == ["row 5 isn't the one that was the head when its hash was kept"]


def test_rows_of_an_older_secret_still_count(ledger: Ledger) -> None:
    write(ledger, 1, 2)
    both = Secrets(["n" * 32, "s" * 32])
    write(ledger, 3, 2, both)
    assert problems(ledger, secrets=both) == []
    assert len(problems(ledger)) == 2


def test_the_database_itself_refuses_changes(ledger: Ledger) -> None:
    write(ledger, 1, 2)
    for statement in ("UPDATE audit SET count = 2", "DELETE FROM audit"):
        with pytest.raises(DBAPIError, match="append-only"), ledger.writing() as connection:
            connection.execute(text(statement))
    assert problems(ledger) == []


def test_writers_take_turns(ledger_url: str) -> None:
    ledgers = [Ledger(ledger_url, wait_s=60) for _ in range(4)]

    def several(ledger: Ledger) -> None:
        for number in range(15):
            write(ledger, number, 2)

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(several, ledger) for ledger in ledgers]:
            done.result()
    verdict = ledgers[0].read(audit.verify, SECRETS)
    assert (verdict.rows, verdict.problems) == (4 * 15 * 2, [])
    for ledger in ledgers:
        ledger.close()


def test_a_trail_longer_than_a_chunk(ledger: Ledger) -> None:
    head = write(ledger, 1, 2_500)
    verdict = ledger.read(audit.verify, SECRETS, [head])
    assert (verdict.rows, verdict.head, verdict.whole) == (2_500, head, True)


def test_odd_characters_are_kept_or_left_out(ledger: Ledger) -> None:
    odd = Event("request.blocked", "key_1", 1, tenant="a\0b", subject="ü" * 500, detail={"x": "\u0000é"})
    ledger.write(audit.append, SECRETS, [odd])
    assert problems(ledger) == []
