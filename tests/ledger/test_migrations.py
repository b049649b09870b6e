"""Migrations: from nothing to the tables that the code knows, on both kinds of database."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect

from fabric.contracts.errors import ConfigError
from fabric.ledger import Ledger, upgrade
from fabric.ledger.tables import metadata
from fabric.ledger.upgrade import migrations


def differences(url: str) -> list[object]:
    ledger = Ledger(url)
    with ledger.reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        found: list[object] = compare_metadata(context, metadata)
    ledger.close()
    return found


def test_an_empty_database_is_brought_to_the_tables(empty_database: str) -> None:
    upgrade(empty_database)
    assert differences(empty_database) == []


def test_partial_indexes_are_partial(empty_database: str) -> None:
    upgrade(empty_database)
    ledger = Ledger(empty_database)
    option = "sqlite_where" if empty_database.startswith("sqlite") else "postgresql_where"
    conditions = {
        index["name"]: str(index["dialect_options"].get(option, ""))
        for table in ("batch_lines", "usage")
        for index in inspect(ledger.engine).get_indexes(table)
    }
    ledger.close()
    assert "state" in conditions["ix_batch_lines_open"]
    assert "batch_id IS NOT NULL" in conditions["ix_usage_batch"]


def test_upgrading_again_changes_nothing(empty_database: str) -> None:
    upgrade(empty_database)
    upgrade(empty_database)
    assert differences(empty_database) == []


def test_processes_may_upgrade_at_the_same_time(empty_database: str) -> None:
    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(upgrade, empty_database) for _ in range(4)]:
            done.result()
    assert differences(empty_database) == []


def test_down_leaves_nothing_behind(empty_database: str) -> None:
    upgrade(empty_database)
    ledger = Ledger(empty_database)
    with ledger.writing() as connection:
        command.downgrade(migrations(connection), "base")
    assert set(inspect(ledger.engine).get_table_names()) == {"alembic_version"}
    ledger.close()


@pytest.mark.parametrize("url", ["mysql://host/name", "nonsense"])
def test_another_database_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        Ledger(url)
