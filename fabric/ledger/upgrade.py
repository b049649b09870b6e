"""Brings a database to the tables that this version of the fabric knows."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import make_url, text

from fabric.ledger.ledger import Ledger

_MIGRATIONS = Path(__file__).parent / "migrations"
#: Any number that no other user of the same PostgreSQL database takes.
_LOCK = 0x666162726963


def upgrade(url: str) -> None:
    """Runs the migrations that are missing, in one transaction. Processes may do this at the same time.

    Raises:
        ConfigError: the URL can't be read.
        Unavailable: the database is away.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(url, connections=1, wait_s=30)
    try:
        with ledger.writing() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            command.upgrade(migrations(connection), "head")
    finally:
        ledger.close()


def migrations(connection: object) -> Config:
    """Alembic's configuration for these migrations on an open connection."""
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
