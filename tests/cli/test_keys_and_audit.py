"""``fabric keys`` and ``fabric audit``: on the ledger itself, whether anything runs or not."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fabric.cli.entry import run
from fabric.contracts.key import well_formed

if TYPE_CHECKING:
    from tests.conftest import Valkey

Command = Callable[..., Any]


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("FABRIC_REDIS_URL", "FABRIC_DATABASE_URL", "FABRIC_CONFIG", "FABRIC_SECRET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FABRIC_DATA_DIR", str(tmp_path / "data"))


@pytest.fixture
def fabric(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command; answers its JSON, or its text where it prints none."""

    def command(*arguments: str, status: int = 0) -> Any:
        assert run(arguments) == status, capsys.readouterr().err
        out = capsys.readouterr().out
        return json.loads(out) if "--json" in arguments else out

    return command


def cut(statement: str, folder: Path) -> None:
    """As somebody who may do anything with the database."""
    with sqlite3.connect(folder / "data" / "ledger.sqlite3") as connection:
        for trigger in ("audit_no_update", "audit_no_delete"):
            connection.execute(f"DROP TRIGGER IF EXISTS {trigger}")
        connection.execute(statement)
    connection.close()


def test_the_first_key_needs_nothing_that_runs(fabric: Command, tmp_path: Path) -> None:
    made = fabric("keys", "create", "--tenant", "acme", "--json")
    assert well_formed(made["key"]) and made["id"].startswith("key_") and made["tenant"] == "acme"
    assert made["scopes"] == ["inference", "batch", "read", "dlq"]
    (shown,) = fabric("keys", "ls", "--json")
    assert "key" not in shown and shown["id"] == made["id"]
    assert made["prefix"] in fabric("keys", "ls")


def test_everything_that_a_key_can_be_held_to(fabric: Command) -> None:
    options = ["--name", "nightly", "--scope", "read", "--scope", "admin", "--model", "org/large", "--tier", "cpu"]
    more = ["--region", "eu", "--privacy-floor", "restricted", "--expires-in", "90d"]
    made = fabric("keys", "create", "--tenant", "acme", *options, *more, "--json")
    assert (made["name"], made["scopes"], made["models"]) == ("nightly", ["read", "admin"], ["org/large"])
    assert (made["tiers"], made["regions"], made["privacy_floor"]) == (["cpu"], ["eu"], "restricted")
    assert made["expires_at"] - made["created_at"] == 90 * 86_400
    assert "models=org/large tiers=cpu regions=eu floor=restricted" in fabric("keys", "ls")


def test_only_the_key_goes_to_standard_output(fabric: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert well_formed(fabric("keys", "create", "--tenant", "acme").strip())


def test_rotate_and_revoke(fabric: Command) -> None:
    made = fabric("keys", "create", "--tenant", "acme", "--json")
    new = fabric("keys", "rotate", made["id"], "--overlap", "1h", "--json")
    assert new["replaces"] == made["id"] and new["key"] != made["key"]
    assert fabric("keys", "revoke", made["id"], "--json")["state"] == "revoked"
    states = {key["id"]: key["state"] for key in fabric("keys", "ls", "--json")}
    assert states == {made["id"]: "revoked", new["id"]: "active"}
    assert fabric("keys", "ls", "--tenant", "other", "--json") == []
    assert "is revoked" in fabric("keys", "revoke", made["id"])


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (("create", "--tenant", "a b"), 1, "Invalid `tenant`"),
        (("create", "--tenant", "a", "--expires-in", "soon"), 2, "'soon' is no time"),
        (("create", "--tenant", "a", "--scope", "root"), 2, "root"),
        (("create",), 2, "--tenant"),
        (("revoke", "key_nobody"), 1, "There is no key 'key_nobody'"),
        (("rotate", "key_nobody", "--overlap", "31d"), 2, "at most 30d"),
    ],
)
def test_what_is_wrong_is_said(
    arguments: tuple[str, ...], status: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["keys", *arguments]) == status
    assert told in capsys.readouterr().err


def test_another_secret_is_noticed(
    fabric: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fabric("keys", "create", "--tenant", "acme")
    monkeypatch.setenv("FABRIC_SECRET", "x" * 32)
    assert run(["keys", "create", "--tenant", "acme"]) == 78
    assert "made under another secret" in capsys.readouterr().err


class TestAudit:
    def test_a_trail_that_is_whole(self, fabric: Command) -> None:
        made = fabric("keys", "create", "--tenant", "acme", "--json")
        fabric("keys", "revoke", made["id"])
        verdict = fabric("audit", "verify", "--json")
        assert (verdict["whole"], verdict["rows"], verdict["head_in_store"]) == (True, 2, None)
        assert f"2 rows, whole; head {verdict['head']}" in fabric("audit", "verify", "--head", verdict["head"])

    def test_what_was_done_to_it_is_found(
        self, fabric: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for _ in range(3):
            fabric("keys", "create", "--tenant", "acme")
        head = fabric("audit", "verify", "--json")["head"]
        cut("DELETE FROM audit WHERE seq = 3", tmp_path)
        assert fabric("audit", "verify", "--json")["whole"]  # nobody can tell, without the head
        assert run(["audit", "verify", "--head", head]) == 1
        told = capsys.readouterr()
        assert "error: the end was cut off: row 3 is missing" in told.err and "NOT whole" in told.out
        cut("UPDATE audit SET tenant = 'other' WHERE seq = 1", tmp_path)
        assert fabric("audit", "verify", "--json", status=1)["problems"] == [
            "row 1 isn't what was written there after the row before it"
        ]

    def test_the_head_in_the_store_counts_by_itself(
        self, fabric: Command, tmp_path: Path, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FABRIC_REDIS_URL", valkey.url)
        for _ in range(3):
            fabric("keys", "create", "--tenant", "acme")
        verdict = fabric("audit", "verify", "--json")
        assert verdict["head_in_store"] == verdict["head"]
        cut("DELETE FROM audit WHERE seq > 1", tmp_path)
        assert fabric("audit", "verify", "--json", status=1)["problems"] == [
            "the end was cut off: rows 2 to 3 are missing"
        ]

    def test_export(self, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
        def exported(*options: str) -> list[dict[str, Any]]:
            capfdbinary.readouterr()
            assert run(["audit", "export", *options]) == 0
            printed = capfdbinary.readouterr().out
            text = (tmp_path / options[1]).read_bytes() if options[0] == "-o" else printed
            return [json.loads(line) for line in text.splitlines()]

        assert run(["keys", "create", "--tenant", "acme"]) == 0
        assert [(row["seq"], row["action"]) for row in exported("-o", "trail.jsonl")] == [(1, "key.created")]
        (row,) = exported("-o", "rest.jsonl", "--after", "1")
        assert (row["action"], row["detail"]) == ("audit.exported", {"after": 0, "rows": 1})
        (row,) = exported("--after", "2")
        assert row["seq"] == 3

    @pytest.mark.parametrize("head", ["", "x", "1", "1:zz", "-1:" + "0" * 64, "1:00"])
    def test_what_is_no_head(self, head: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["audit", "verify", "--head", head]) == 2
        assert "is no head" in capsys.readouterr().err
