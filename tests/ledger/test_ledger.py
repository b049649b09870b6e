"""Transactions: all or nothing, and a database that is away is named so."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from fabric.contracts.errors import Unavailable
from fabric.ledger import Ledger, batches

if TYPE_CHECKING:
    from tests.conftest import Postgres
    from tests.ledger.conftest import Rows


def test_a_transaction_that_fails_leaves_nothing(rows: Rows, ledger: Ledger) -> None:
    with pytest.raises(RuntimeError), ledger.writing() as connection:
        batches.create(connection, rows.new_batch())
        raise RuntimeError
    assert ledger.read(batches.find, "batch_1") is None


def test_a_database_that_isnt_there_is_unavailable(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'no' / 'such' / 'folder' / 'x.sqlite3'}")
    with pytest.raises(Unavailable):
        ledger.read(batches.unfinished)


def test_a_locked_database_is_unavailable(sqlite_ledger: str) -> None:
    ledger, other = Ledger(sqlite_ledger, wait_s=0.05), Ledger(sqlite_ledger)
    with other.writing(), pytest.raises(Unavailable):
        ledger.write(batches.unfed, ["batch_1"])
    ledger.write(batches.unfed, ["batch_1"])
    ledger.close()
    other.close()


def test_a_server_that_crashed_is_unavailable_until_it_is_back(postgres: Postgres, postgres_ledger: str) -> None:
    ledger = Ledger(postgres_ledger, wait_s=2)
    assert ledger.read(batches.unfinished) == []
    postgres.crash()
    try:
        with pytest.raises(Unavailable):
            ledger.read(batches.unfinished)
    finally:
        postgres.start()
    assert ledger.read(batches.unfinished) == []
    ledger.close()


def test_errors_dont_show_what_was_stored(ledger: Ledger) -> None:
    with pytest.raises((Unavailable, ProgrammingError)) as caught, ledger.writing() as connection:
        connection.execute(text("INSERT INTO nowhere VALUES (:answer)"), {"answer": "a secret"})
    assert "a secret" not in str(caught.value)
