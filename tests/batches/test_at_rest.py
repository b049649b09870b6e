"""What lies on the fabric's disks while and after a batch runs: no text of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fabric.ledger import lines

if TYPE_CHECKING:
    from tests.batches.conftest import Desk, Worker

CANARIES = (b"canary-prompt-4711", b"You said: canary")


def found_in(folder: Path) -> dict[str, bytes]:
    """Names of files that hold a canary, of the ledger with its log, and of the files directory."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in paths} & {".sqlite3", ".db"}, "the ledger lies elsewhere"
    return {path.name: canary for path in paths for canary in CANARIES if canary in path.read_bytes()}


def test_neither_prompts_nor_answers(
    desk: Desk, worker: Worker, line: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    worker.start()
    batch_id = desk.batch(line(f"c{n}", f"canary-prompt-4711 {n}") for n in range(40))
    service, recorder = desk.service(), desk.recorder()
    # All answers are in the ledger, and no file of them is written.
    desk.drive(lambda: desk.found(batch_id).status == "finalizing", service.round, recorder.step)
    answered = desk.ledger.read(lines.ended, batch_id, after=0, limit=100)
    assert len(answered) == 40
    assert all(line.response for line in answered)
    assert found_in(tmp_path) == {}
    desk.drive(lambda: desk.found(batch_id).status == "completed", service.round, recorder.step)
    assert found_in(tmp_path) == {}
    texts = [answer["response"]["body"]["choices"][0]["message"]["content"] for answer in desk.output(batch_id)]
    assert texts == [f"You said: canary-prompt-4711 {n}" for n in range(40)]
    assert "canary" not in "".join(capfd.readouterr())
