"""For commands that work on the ledger itself, whether the fabric runs or not."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fabric.cli.start import begin
from fabric.contracts.errors import Unavailable
from fabric.contracts.secret import Secrets
from fabric.ledger import Ledger
from fabric.ledger.audit import Head
from fabric.settings import Settings

#: The store is asked for one value; a fabric that is stopped has none.
_STORE_S = 1.0


@dataclass(frozen=True, slots=True)
class OnLedger:
    """``actor``: what the audit trail calls who uses the command line."""

    settings: Settings
    ledger: Ledger
    secrets: Secrets
    actor: str = "cli"

    def keep_head(self) -> None:
        """The audit trail's new head, in the store if that runs."""
        from fabric.ledger import audit
        from fabric.store import Store
        from fabric.trail import keep_head

        if self._stopped:
            return
        with contextlib.closing(Store(self.settings.redis_url, timeout_s=_STORE_S)) as store:
            keep_head(self.ledger, store, self.ledger.read(audit.head))

    def kept_head(self) -> Head | None:
        """
        Raises:
            Unavailable: the store is away.
        """
        from fabric.store import Store, audit_head

        if self._stopped:
            raise Unavailable("The fabric's own store isn't running.")
        with contextlib.closing(Store(self.settings.redis_url, timeout_s=_STORE_S)) as store:
            text = store(audit_head.kept())
        return Head.parse(text) if text else None

    @property
    def store_runs(self) -> bool:
        """Whether there may be a store to ask: the embedded one stops with its fabric."""
        return not self._stopped

    @property
    def _stopped(self) -> bool:
        return self.settings.socket is not None and not self.settings.socket.exists()


@contextlib.contextmanager
def on_ledger(config: Path | None, data_dir: Path | None) -> Iterator[OnLedger]:
    """
    Raises:
        ConfigError: a setting is wrong, or the secret can't be read or made.
        Unavailable: the database is away.
    """
    from fabric.ledger import upgrade
    from fabric.settings.secret import secrets_of

    settings = begin(config, data_dir=data_dir)
    secrets = secrets_of(settings)
    if not has_tables(settings.database_url):
        upgrade(settings.database_url)
    # A store that is stopped is nothing to warn of.
    with quiet("fabric.trail"), contextlib.closing(Ledger(settings.database_url, connections=1)) as ledger:
        yield OnLedger(settings, ledger, secrets)


@contextlib.contextmanager
def quiet(logger: str) -> Iterator[None]:
    """Only errors of this part are logged meanwhile."""
    part = logging.getLogger(logger)
    level = part.level
    part.setLevel(logging.ERROR)
    try:
        yield
    finally:
        part.setLevel(level)


def has_tables(database_url: str) -> bool:
    """Whether a ledger is there. Makes none: SQLite would, by being asked.

    Raises:
        Unavailable: the database is away.
    """
    from sqlalchemy import inspect, make_url

    parsed = make_url(database_url)
    if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").exists():
        return False
    with contextlib.closing(Ledger(database_url, connections=1, wait_s=5)) as ledger, ledger.reading() as connection:
        return inspect(connection).has_table("audit")
