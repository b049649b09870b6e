"""The way into the database: an engine, and transactions that fail as ``Unavailable``.

>>> ledger = Ledger("sqlite:////var/lib/fabric/ledger.sqlite3")
>>> batch = ledger.read(batches.get, tenant, batch_id)          # in the gateway: through a thread
>>> with ledger.writing() as connection:
...     files.delete(connection, tenant, file_id, now_ms)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, exc, make_url

from fabric.contracts.errors import ConfigError, Unavailable

P = ParamSpec("P")
T = TypeVar("T")

_AWAY = "The ledger (database) can't be reached or is busy; try again."
_WRITES = "fabric_writes"


class Ledger:
    """Safe to share between threads. ``url`` is an SQLAlchemy URL: ``sqlite:///…`` or ``postgresql+psycopg://…``."""

    def __init__(self, url: str, *, connections: int = 8, wait_s: float = 10.0) -> None:
        """``wait_s``: how long a transaction waits for its turn before it fails.

        Raises:
            ConfigError: the URL can't be read, or names a database that isn't supported.
        """
        self.engine = open_engine(url, connections=connections, wait_s=wait_s)
        self._writing = self.engine.execution_options(**{_WRITES: True})

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """
        Raises:
            Unavailable: the database is away.
        """
        with _guarded(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """One transaction: all or nothing.

        Raises:
            Unavailable: the database is away or locked. The transaction may or may not have happened
                when it failed at its end; every statement of the ledger can be sent again.
        """
        with _guarded(), self._writing.begin() as connection:
            yield connection

    def read(self, query: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        with self.reading() as connection:
            return query(connection, *args, **kwargs)

    def write(self, query: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        with self.writing() as connection:
            return query(connection, *args, **kwargs)

    def close(self) -> None:
        self.engine.dispose()


@contextmanager
def _guarded() -> Iterator[None]:
    try:
        yield
    except (exc.OperationalError, exc.InterfaceError, exc.TimeoutError) as error:
        raise Unavailable(_AWAY, retry_after_s=1) from error
    except exc.DBAPIError as error:
        if error.connection_invalidated:
            raise Unavailable(_AWAY, retry_after_s=1) from error
        raise


def open_engine(url: str, *, connections: int = 8, wait_s: float = 10.0) -> Engine:
    try:
        parsed = make_url(url)
    except exc.ArgumentError:
        raise ConfigError(
            "The database URL can't be read; use sqlite:///PATH or postgresql://USER@HOST/NAME."
        ) from None
    # Statements may hold answers of models: they must not show in errors.
    shared: dict[str, Any] = {
        "hide_parameters": True,
        "pool_size": connections,
        "max_overflow": 4,
        "pool_timeout": wait_s,
    }
    match parsed.get_backend_name():
        case "sqlite":
            engine = create_engine(parsed, connect_args={"timeout": wait_s}, **shared)
            event.listen(engine, "connect", _prepare_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
        case "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
            arguments = {"connect_timeout": int(wait_s), "options": f"-c lock_timeout={int(wait_s * 1000)}"}
            engine = create_engine(parsed, pool_pre_ping=True, connect_args=arguments, **shared)
        case other:
            raise ConfigError(f"The ledger doesn't run on {other}; use SQLite or PostgreSQL.")
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # The driver would begin transactions late and by its own rules; `_begin_sqlite` does it instead.
    connection.isolation_level = None
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "journal_size_limit = 67108864", "cache_size = -16384"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that writes takes the lock at its start, where waiting for it is possible.
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
