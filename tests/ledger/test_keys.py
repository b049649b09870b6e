"""Keys in the ledger: stored as keyed hashes, sealed, and every change written down. On both kinds of database."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select, text, update

from fabric.contracts.errors import ConfigError, Conflict, NotFound
from fabric.contracts.key import EVERYTHING, Permissions, well_formed
from fabric.contracts.secret import Secrets
from fabric.ledger import Ledger, audit, keys
from fabric.ledger.keys import NewKey, key_object
from fabric.ledger.tables import keys as table

SECRETS = Secrets(["s" * 32])
OTHER = Secrets(["x" * 32])
NARROW = Permissions(models=("small",), tiers=("cpu",), regions=("eu",), privacy_floor="restricted")


def new(**values: Any) -> NewKey:
    fixed: dict[str, Any] = {
        "tenant": "acme",
        "scopes": ("inference", "read"),
        "created_ms": 1_000,
        "created_by": "cli",
    }
    return NewKey(**(fixed | values))


def actions(ledger: Ledger) -> list[tuple[str, str | None, str]]:
    with ledger.reading() as connection:
        return [(row.action, row.subject, row.actor) for row in audit.rows(connection)]


def test_a_key_comes_back_as_it_was_made(ledger: Ledger) -> None:
    made, key = ledger.write(keys.create, SECRETS, new(name="ci", permissions=NARROW, expires_ms=9_000))
    assert well_formed(key)
    assert ledger.read(keys.get, made.id) == made
    assert made.genuine(SECRETS) and not made.genuine(OTHER)
    assert (made.permissions, made.scopes, made.state(8_999), made.state(9_000)) == (
        NARROW,
        ("inference", "read"),
        "active",
        "expired",
    )
    shown = key_object(made, 2_000)
    assert shown["prefix"] == key[:12] and shown["tiers"] == ("cpu",) and shown["expires_at"] == 9


def test_the_key_is_nowhere_in_the_database(ledger: Ledger) -> None:
    """With the database alone nobody can use, guess or check a key: what is stored is an HMAC of 256 random bits."""
    _, key = ledger.write(keys.create, SECRETS, new())
    with ledger.reading() as connection:
        stored = [
            repr(tuple(row)) for name in ("keys", "audit") for row in connection.execute(text(f"SELECT * FROM {name}"))
        ]
    assert not any(key in row or key[12:] in row for row in stored)


@pytest.mark.parametrize(
    "change",
    [
        {"tenant": "other"},
        {"scopes": '["admin"]'},
        {"tiers": None},
        {"models": None},
        {"regions": '["us"]'},
        {"privacy_floor": None},
        {"expires_ms": 99_000},
        {"digest": b"d" * 32},
    ],
)
def test_who_can_only_write_to_the_database_cant_widen_a_key(ledger: Ledger, change: dict[str, Any]) -> None:
    made, _ = ledger.write(keys.create, SECRETS, new(permissions=NARROW, expires_ms=9_000))
    with ledger.writing() as connection:
        connection.execute(update(table).values(change))
    assert not ledger.read(keys.get, made.id).genuine(SECRETS)
    with pytest.raises(Conflict):
        ledger.write(keys.rotate, SECRETS, made.id, 2_000, "cli")


def test_a_revocation_cant_be_undone_in_the_database(ledger: Ledger) -> None:
    made, _ = ledger.write(keys.create, SECRETS, new())
    revoked = ledger.write(keys.revoke, SECRETS, made.id, 2_000, "key_admin")
    assert revoked.state(2_000) == "revoked" and revoked.genuine(SECRETS)
    assert ledger.write(keys.revoke, SECRETS, made.id, 3_000, "cli").revoked_ms == 2_000  # twice is once
    with ledger.writing() as connection:
        connection.execute(update(table).values(revoked_ms=None))
    assert not ledger.read(keys.get, made.id).genuine(SECRETS)
    assert actions(ledger) == [("key.created", made.id, "cli"), ("key.revoked", made.id, "key_admin")]


def test_rotation_copies_what_the_key_permits(ledger: Ledger) -> None:
    old, first = ledger.write(keys.create, SECRETS, new(permissions=NARROW, expires_ms=11_000, name="ci"))
    made, second = ledger.write(keys.rotate, SECRETS, old.id, 5_000, "cli", overlap_ms=600)
    assert first != second and made.id != old.id
    same = replace(made, permissions=NARROW, name="ci", tenant="acme", expires_ms=15_000, replaces=old.id)
    assert made == same
    assert ledger.read(keys.get, old.id).expires_ms == 5_600
    assert ledger.read(keys.get, old.id).genuine(SECRETS)
    again, _ = ledger.write(keys.rotate, SECRETS, made.id, 6_000, "cli")
    assert ledger.read(keys.get, made.id).state(6_000) == "revoked"
    assert ledger.read(keys.get, again.id).replaces == made.id
    with pytest.raises(Conflict, match="The key is revoked: make a new one"):
        ledger.write(keys.rotate, SECRETS, made.id, 7_000, "cli")


def test_another_secret_makes_and_changes_no_keys(ledger: Ledger) -> None:
    made, key = ledger.write(keys.create, SECRETS, new())
    for attempt in (
        lambda: ledger.write(keys.create, OTHER, new()),
        lambda: ledger.write(keys.revoke, OTHER, made.id, 2_000, "cli"),
    ):
        with pytest.raises(ConfigError, match="made under another secret"):
            attempt()
    changing = Secrets(["n" * 32, "s" * 32])
    ledger.write(keys.create, changing, new())
    assert ledger.read(keys.get, made.id).genuine(changing)
    assert made.digest in changing.digests(key.encode())


def test_first_use_is_noted_once(ledger: Ledger) -> None:
    made, _ = ledger.write(keys.create, SECRETS, new())
    (event,) = ledger.write(keys.used, {made.id: 5_000, "key_unknown": 1})
    assert (event.action, event.subject, event.at_ms) == ("key.first_used", made.id, 5_000)
    assert ledger.write(keys.used, {made.id: 6_000}) == []
    used = ledger.read(keys.get, made.id)
    assert used.first_used_ms == 5_000 and used.genuine(SECRETS)


def test_pages_and_changes(ledger: Ledger) -> None:
    made = [
        ledger.write(keys.create, SECRETS, new(tenant=tenant, created_ms=at))[0].id for at, tenant in enumerate("abab")
    ]
    first, more = ledger.read(keys.page, limit=3)
    assert [key.id for key in first] == made[:0:-1] and more
    rest, more = ledger.read(keys.page, limit=3, after=first[-1].id)
    assert [key.id for key in rest] == made[:1] and not more
    mine, _ = ledger.read(keys.page, limit=9, tenant="a")
    assert {key.tenant for key in mine} == {"a"} and len(mine) == 2
    changed = ledger.read(keys.changed, 0)
    assert [key.id for key in changed] == made
    ledger.write(keys.revoke, SECRETS, made[1], 9, "cli")
    assert [key.id for key in ledger.read(keys.changed, changed[-1].revision)] == [made[1]]
    with pytest.raises(NotFound):
        ledger.read(keys.get, "key_nobody")


def test_some_counts_keys_that_have_ended(ledger: Ledger) -> None:
    assert not ledger.read(keys.some)
    made, _ = ledger.write(keys.create, SECRETS, new())
    ledger.write(keys.revoke, SECRETS, made.id, 2_000, "cli")
    assert ledger.read(keys.some)


def test_revisions_are_in_the_order_of_commits(ledger_url: str) -> None:
    """Who has read one revision has missed none before it, however many processes write."""
    ledgers = [Ledger(ledger_url, wait_s=60) for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        done = [threads.submit(ledger.write, keys.create, SECRETS, new()) for ledger in ledgers * 5]
        seen = 0
        while not all(one.done() for one in done):
            for key in ledgers[0].read(keys.changed, seen):
                assert key.revision == seen + 1
                seen = key.revision
    with ledgers[0].reading() as connection:
        assert sorted(connection.execute(select(table.c.revision)).scalars()) == list(range(1, 21))
        assert audit.verify(connection, SECRETS).problems == []
    for ledger in ledgers:
        ledger.close()


def test_everything_is_no_text() -> None:
    assert EVERYTHING.dump() is None and Permissions.load(None) == EVERYTHING
    assert Permissions.load(NARROW.dump()) == NARROW
