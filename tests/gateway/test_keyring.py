"""The keys that a gateway knows: who is let in, when it notices changes, and what happens while the ledger is away."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text, update
from starlette.datastructures import Headers

from fabric.contracts.errors import NotAuthenticated, Unavailable
from fabric.contracts.key import new_key
from fabric.contracts.secret import Secrets
from fabric.gateway.caller import Caller
from fabric.gateway.keyring import Keyring
from fabric.gateway.ledger_threads import LedgerThreads
from fabric.ledger import Ledger, keys
from fabric.ledger.keys import Key, NewKey
from fabric.ledger.tables import keys as table

SECRETS = Secrets(["s" * 32])


class Clock:
    now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


class Bench:
    """A keyring that looks only when it must, and the ledger that it looks into."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.ledger = Ledger(url, wait_s=20)
        self.threads = LedgerThreads(url)
        self.clock = Clock()
        self.used: list[str] = []
        self.keyring = self.another()

    def another(self, secrets: Secrets = SECRETS, **options: Any) -> Keyring:
        return Keyring(self.threads, secrets, first_use=self.used.append, now_s=self.clock, **options)

    def key(self, **values: Any) -> tuple[Key, str]:
        fixed: dict[str, Any] = {"tenant": "acme", "scopes": ("inference",), "created_ms": 1, "created_by": "cli"}
        return self.ledger.write(keys.create, SECRETS, NewKey(**(fixed | values)))

    async def asks(self, key: str | None, keyring: Keyring | None = None) -> Caller:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return await (keyring or self.keyring).caller(Headers(headers))

    async def look(self, keyring: Keyring | None = None) -> None:
        """As the clock makes it do."""
        await (keyring or self.keyring)._look()

    def close(self) -> None:
        self.threads.close()
        self.ledger.close()


@pytest.fixture
def bench(sqlite_ledger: str) -> Iterator[Bench]:
    bench = Bench(sqlite_ledger)
    yield bench
    bench.close()


async def test_open_until_the_first_key_is_made(bench: Bench) -> None:
    for key in (None, "anything", new_key()):
        caller = await bench.asks(key)
        assert (caller.tenant, caller.key_id, caller.actor) == ("default", None, "open")
    made, key = bench.key()
    await bench.look()
    assert (await bench.asks(key)).key_id == made.id
    with pytest.raises(NotAuthenticated, match="Give an API key, as `Authorization: Bearer fab_…`"):
        await bench.asks(None)


async def test_never_open_again(bench: Bench) -> None:
    """Not when every key has ended, and not when somebody empties the table."""
    made, _ = bench.key()
    bench.ledger.write(keys.revoke, SECRETS, made.id, 2, "cli")
    with pytest.raises(NotAuthenticated):
        await bench.asks(None)
    with bench.ledger.writing() as connection:
        connection.execute(table.delete())
    await bench.look()
    for keyring in (bench.keyring, bench.another()):  # the audit trail knows of the key
        with pytest.raises(NotAuthenticated):
            await bench.asks(None, keyring)


async def test_beyond_loopback_it_isnt_open_without_keys_either(bench: Bench) -> None:
    keyring = bench.another(may_be_open=False)
    with pytest.raises(NotAuthenticated):
        await bench.asks(None, keyring)


async def test_a_new_key_counts_at_once(bench: Bench) -> None:
    bench.key()
    await bench.look()
    made, key = bench.key()
    assert (await bench.asks(key)).key_id == made.id


async def test_a_revoked_key_is_refused_after_a_look(bench: Bench) -> None:
    made, key = bench.key()
    assert (await bench.asks(key)).key_id == made.id
    bench.ledger.write(keys.revoke, SECRETS, made.id, 2, "cli")
    await bench.look()
    with pytest.raises(NotAuthenticated, match="isn't known here, or it was revoked"):
        await bench.asks(key)


async def test_it_keeps_looking(bench: Bench) -> None:
    keyring = bench.another(look_s=0.01)
    made, key = bench.key()
    running = asyncio.create_task(keyring.run())
    try:
        async with asyncio.timeout(60):
            assert (await bench.asks(key, keyring)).key_id == made.id
            bench.ledger.write(keys.revoke, SECRETS, made.id, 2, "cli")
            while keyring.holder(made.id) is not None:
                await asyncio.sleep(0.01)
    finally:
        running.cancel()


async def test_a_key_ends_by_the_clock_without_a_look(bench: Bench) -> None:
    made, key = bench.key(expires_ms=2_000_000)
    assert (await bench.asks(key)).key_id == made.id
    bench.clock.now_s = 1_999.9
    assert bench.keyring.holder(made.id)
    bench.clock.now_s = 2_000.0
    assert bench.keyring.holder(made.id) is None
    with pytest.raises(NotAuthenticated, match="has expired"):
        await bench.asks(key)


async def test_rotation_with_and_without_overlap(bench: Bench) -> None:
    made, first = bench.key()
    _, second = bench.ledger.write(keys.rotate, SECRETS, made.id, 1_000_000, "cli", overlap_ms=5_000)
    for key in (first, second):
        assert (await bench.asks(key)).tenant == "acme"
    bench.clock.now_s = 1_005.0
    with pytest.raises(NotAuthenticated):
        await bench.asks(first)
    assert (await bench.asks(second)).tenant == "acme"


@pytest.mark.parametrize("token", ["", "fab_", "sk-123", "fab_" + "0" * 49, "ü" * 53, "fab_" + "a" * 10_000])
async def test_what_is_no_key_is_refused_without_a_look(bench: Bench, token: str) -> None:
    bench.key()
    await bench.look()
    bench.keyring._looked_s = float("-inf")
    with pytest.raises(NotAuthenticated, match="no API key of a fabric"):
        await bench.keyring.caller(Headers(raw=[(b"authorization", b"Bearer " + token.encode())]))
    assert bench.keyring._looked_s == float("-inf")


@pytest.mark.parametrize("value", ["Basic Zm9v", "fab_x", "Bearer", "Token x", ""])
async def test_another_scheme_is_no_key(bench: Bench, value: str) -> None:
    bench.key()
    with pytest.raises(NotAuthenticated, match="Give an API key"):
        await bench.keyring.caller(Headers({"authorization": value}))


async def test_the_scheme_may_be_written_in_any_case(bench: Bench) -> None:
    made, key = bench.key()
    assert (await bench.keyring.caller(Headers({"authorization": f"bEaReR  {key} "}))).key_id == made.id


async def test_errors_and_logs_dont_repeat_the_key(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.key()
    stranger = new_key()
    with pytest.raises(NotAuthenticated) as refused:
        await bench.asks(stranger)
    assert stranger[12:] not in str(refused.value) and stranger[12:] not in caplog.text


async def test_a_key_that_was_made_just_now_closes_an_open_fabric(bench: Bench) -> None:
    """Nobody who has a key is taken for nobody."""
    assert await bench.keyring.is_open()
    made, key = bench.key()
    assert (await bench.asks(key)).key_id == made.id
    with pytest.raises(NotAuthenticated):
        await bench.asks(None)


async def test_a_stranger_makes_it_look_once(bench: Bench) -> None:
    bench.key()
    stranger = new_key()
    for times in range(3):
        with pytest.raises(NotAuthenticated):
            await bench.asks(stranger)
        if not times:
            looked = bench.keyring._looked_s
    assert bench.keyring._looked_s == looked


async def test_strangers_who_come_together_share_a_look(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.key()
    await bench.look()
    looks = []
    look = bench.keyring._look

    async def counted() -> bool:
        looks.append(1)
        return await look()

    monkeypatch.setattr(bench.keyring, "_look", counted)
    refused = await asyncio.gather(*(bench.asks(new_key()) for _ in range(200)), return_exceptions=True)
    assert {type(one) for one in refused} == {NotAuthenticated}
    assert len(looks) == 1


class TestLedgerAway:
    async def test_known_keys_go_on_and_unknown_ones_cant_be_judged(self, bench: Bench, monkeypatch: Any) -> None:
        made, key = bench.key()
        await bench.asks(key)
        self.cut(bench, monkeypatch)
        await bench.look()
        assert (await bench.asks(key)).key_id == made.id
        bench.keyring._looked_s = float("-inf")
        with pytest.raises(Unavailable, match="can't be checked: the ledger"):
            await bench.asks(new_key())
        with pytest.raises(NotAuthenticated):
            await bench.asks(None)

    async def test_before_the_first_look_nobody_is_let_in(self, bench: Bench, monkeypatch: Any) -> None:
        self.cut(bench, monkeypatch)
        for key in (None, new_key()):
            bench.keyring._looked_s = float("-inf")
            with pytest.raises(Unavailable):
                await bench.asks(key)

    async def test_an_open_fabric_stays_open(self, bench: Bench, monkeypatch: Any) -> None:
        assert (await bench.asks(None)).key_id is None
        self.cut(bench, monkeypatch)
        await bench.look()
        assert (await bench.asks(None)).key_id is None

    @staticmethod
    def cut(bench: Bench, monkeypatch: Any) -> None:
        """From here on the database file can't be opened."""
        away = LedgerThreads(f"sqlite:///{Path('/nowhere/at/all')}")
        monkeypatch.setattr(bench.keyring, "_ledger", away)


async def test_a_row_that_somebody_changed_lets_nobody_in(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    made, key = bench.key()
    with bench.ledger.writing() as connection:
        connection.execute(update(table).values(scopes='["admin"]'))
    with pytest.raises(NotAuthenticated):
        await bench.asks(key)
    assert f"{made.id} is refused: its row was changed" in caplog.text


async def test_a_gateway_with_another_secret_says_so(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    _, key = bench.key()
    other = bench.another(Secrets(["x" * 32]))
    with pytest.raises(NotAuthenticated):
        await bench.asks(key, other)
    assert "made under another secret" in caplog.text
    changing = bench.another(Secrets(["n" * 32, "s" * 32]))
    assert (await bench.asks(key, changing)).tenant == "acme"


async def test_the_first_use_is_told_once(bench: Bench) -> None:
    made, key = bench.key()
    for _ in range(3):
        await bench.asks(key)
    assert bench.used == [made.id]
    bench.ledger.write(keys.used, {made.id: 5})
    later = bench.another()
    await bench.asks(key, later)
    assert bench.used == [made.id]


async def test_the_ledger_isnt_asked_on_the_way_of_a_known_key(bench: Bench) -> None:
    made, key = bench.key()
    await bench.asks(key)
    with bench.ledger.writing() as connection:
        connection.execute(text("DROP TABLE keys"))
    looked = bench.keyring._looked_s
    for _ in range(100):
        assert (await bench.asks(key)).key_id == made.id
    assert bench.keyring._looked_s == looked
