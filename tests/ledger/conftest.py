"""An up-to-date ledger on each kind of database, and rows in one line each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from fabric.ledger import Ledger, batches, files, lines
from fabric.ledger.batches import Batch, NewBatch
from fabric.ledger.files import File
from fabric.ledger.lines import NewLine


@dataclass
class Rows:
    """Makes rows with values that most tests don't care for."""

    ledger: Ledger

    def file(self, file_id: str = "file_1", **values: Any) -> File:
        fixed: dict[str, Any] = {
            "tenant": "default",
            "purpose": "batch",
            "filename": "in.jsonl",
            "bytes": 10,
            "lines": 1,
            "path": file_id,
            "created_ms": 1_000,
        }
        file = File(id=file_id, **(fixed | values))
        self.ledger.write(files.create, file)
        return file

    def new_batch(self, batch_id: str = "batch_1", **values: Any) -> NewBatch:
        fixed: dict[str, Any] = {
            "tenant": "default",
            "key_id": None,
            "endpoint": "/v1/chat/completions",
            "input_file_id": "file_1",
            "completion_window": "24h",
            "metadata": None,
            "created_ms": 1_000,
            "expires_ms": 86_401_000,
        }
        return NewBatch(id=batch_id, **(fixed | values))

    def batch(self, batch_id: str = "batch_1", **values: Any) -> Batch:
        batch, _ = self.ledger.write(batches.create, self.new_batch(batch_id, **values))
        return batch

    def running(self, batch_id: str = "batch_1", lines_: int = 3, **values: Any) -> Batch:
        """A batch in progress, with as many open lines."""
        self.batch(batch_id, **values)
        self.ledger.write(lines.add, batch_id, [line(number) for number in range(1, lines_ + 1)])
        self.ledger.write(
            lambda connection: batches.advance(
                connection, batch_id, "validating", "in_progress", total=lines_, in_progress_ms=2_000
            )
        )
        return self.found(batch_id)

    def found(self, batch_id: str = "batch_1") -> Batch:
        batch = self.ledger.read(batches.find, batch_id)
        assert batch is not None
        return batch


def line(number: int, **values: Any) -> NewLine:
    fixed: dict[str, Any] = {"custom_id": f"c{number}", "start": 100 * number, "length": 99, "state": "open"}
    return NewLine(line_no=number, **(fixed | values))


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    ledger = Ledger(ledger_url, wait_s=20)
    yield ledger
    ledger.close()


@pytest.fixture
def rows(ledger: Ledger) -> Rows:
    return Rows(ledger)
