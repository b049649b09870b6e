"""Where the time of finished jobs went, as the ledger has it, and the processor time that each process took."""

from __future__ import annotations

import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.processes import until
from benchmarks.report import Table

_RECORDED_S = 60.0


@dataclass(frozen=True, slots=True)
class Stages:
    """Means over all jobs, in milliseconds on the store's clock."""

    backlog_ms: float  #: accepted -> dispatched: scheduler wakes, decides
    queue_ms: float  #: dispatched -> claimed: published, received by Celery, claimed
    run_ms: float  #: claimed -> committed, the engine's time included
    engine_ms: float

    def table(self, *, whole_ms: float) -> Table:
        rest = whole_ms - self.backlog_ms - self.queue_ms - self.run_ms
        return Table(
            ("stage", "mean ms"),
            [
                ("accepted -> dispatched", self.backlog_ms),
                ("dispatched -> claimed", self.queue_ms),
                ("claimed -> committed", self.run_ms),
                ("  of it in the engine", self.engine_ms),
                ("gateway and client", rest),
            ],
        )


class LedgerFile:
    """Reads the SQLite ledger of a fabric that runs."""

    def __init__(self, data_dir: Path) -> None:
        self._uri = f"{(data_dir / 'ledger.sqlite3').as_uri()}?mode=ro"

    def rows(self, statement: str, *values: Any) -> list[Any]:
        with closing(sqlite3.connect(self._uri, uri=True, timeout=30)) as connection:
            return connection.execute(statement, values).fetchall()

    def wait_for_jobs(self, jobs: int) -> None:
        """Until the recorder has caught up."""
        until(
            lambda: self.rows("SELECT count(*) FROM usage")[0][0] >= jobs,
            within_s=_RECORDED_S,
            missing=f"the ledger has no {jobs} jobs",
        )

    def stages(self) -> Stages:
        """Of every job that came alone, not in a batch."""
        row = self.rows(
            "SELECT avg(dispatched_ms - accepted_ms), avg(claimed_ms - dispatched_ms), avg(finished_ms - claimed_ms),"
            " avg(engine_s) * 1000 FROM usage WHERE batch_id IS NULL AND state = 'succeeded' AND attempt = 1"
        )[0]
        return Stages(*row)


def cpu_table(used: Counter[str], jobs: int) -> Table:
    rows = [(name, seconds / jobs * 1000) for name, seconds in sorted(used.items())]
    return Table(("processor time of", "ms a job"), [*rows, ("all of the fabric", used.total() / jobs * 1000)])


def cpu_ms(used: Counter[str], jobs: int) -> dict[str, float]:
    return {name: seconds / jobs * 1000 for name, seconds in sorted(used.items())}
