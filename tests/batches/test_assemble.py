"""From outcomes to files: the same whoever writes them, and once."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from sqlalchemy import select, update

from fabric.batches import assemble as module
from fabric.batches.assemble import assemble, free
from fabric.contracts.errors import BrokenSeal, Unavailable
from fabric.ledger import batches, lines
from fabric.ledger.lines import Outcome
from fabric.ledger.tables import batch_lines

if TYPE_CHECKING:
    from tests.batches.conftest import Desk


def settled(desk: Desk, line: Any, count: int, answer: bytes = b'{"custom_id":"c"}') -> str:
    """A batch whose lines have their outcome: each tenth an error."""
    batch_id = desk.batch(line(f"c{n}") for n in range(count))
    service = desk.service(window=0)
    desk.drive(lambda: desk.found(batch_id).status == "in_progress", service.round)
    for first in range(1, count + 1, 1_000):
        outcomes = [
            Outcome(n, "failed", error=b'{"n":%d}' % n)
            if n % 10 == 0
            else Outcome(n, "completed", response=desk.home.line(batch_id, n, answer))
            for n in range(first, min(first + 1_000, count + 1))
        ]
        with desk.ledger.writing() as connection:
            completed, failed = lines.settle(connection, batch_id, outcomes)
            batches.count(connection, batch_id, completed=completed, failed=failed)
    with desk.ledger.writing() as connection:
        batches.advance(connection, batch_id, "in_progress", "finalizing", finalizing_ms=1)
    return batch_id


def run(desk: Desk, batch_id: str) -> None:
    for _ in assemble(desk.ledger, desk.storage, desk.home, desk.found(batch_id), lambda: 9_000):
        pass


def test_lines_are_in_the_order_of_the_input(each_desk: Desk, line: Any) -> None:
    desk = each_desk
    batch_id = settled(desk, line, 95)
    run(desk, batch_id)
    batch = desk.found(batch_id)
    assert (batch.status, batch.completed_ms, batch.completed, batch.failed) == ("completed", 9_000, 86, 9)
    assert desk.errors(batch_id) == [{"n": n} for n in range(10, 96, 10)]
    assert len(desk.output(batch_id)) == 86


@pytest.mark.parametrize("forged", [b'{"custom_id":"c"}', None], ids=["plain", "of another line"])
def test_an_answer_that_was_put_there_by_others_is_not_handed_out(desk: Desk, line: Any, forged: bytes | None) -> None:
    batch_id = settled(desk, line, 9)
    rows = batch_lines.c
    with desk.ledger.writing() as connection:
        second = connection.scalar(select(rows.response).where(rows.batch_id == batch_id, rows.line_no == 2))
        first = update(batch_lines).where(rows.batch_id == batch_id, rows.line_no == 1)
        connection.execute(first.values(response=forged or second))
    with pytest.raises(BrokenSeal):
        run(desk, batch_id)
    assert desk.found(batch_id).status == "finalizing"
    assert len(list(desk.storage.directory.iterdir())) == 1


def test_a_file_that_would_be_empty_isnt_made(desk: Desk, line: Any) -> None:
    batch_id = settled(desk, line, 9)
    run(desk, batch_id)
    assert desk.found(batch_id).error_file_id is None
    assert len(list(desk.storage.directory.iterdir())) == 2


def test_one_that_was_overtaken_publishes_nothing(each_desk: Desk, line: Any) -> None:
    """Else it would put half a file in the place of a whole one: the lines are gone by then."""
    desk = each_desk
    batch_id = settled(desk, line, 200)
    slow = assemble(desk.ledger, desk.storage, desk.home, desk.found(batch_id), lambda: 1)
    next(slow)
    run(desk, batch_id)
    for _ in free(desk.ledger, batch_id):
        pass
    assert list(slow) == []
    assert len(desk.output(batch_id)) == 180
    assert len(list(desk.storage.directory.iterdir())) == 3


def test_a_crash_between_file_and_commit_is_made_good(desk: Desk, line: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    batch_id = settled(desk, line, 50)

    def die(*_: Any, **__: Any) -> None:
        raise Unavailable("The ledger is away.")

    with monkeypatch.context() as broken:
        broken.setattr(module.files, "create", die)
        with pytest.raises(Unavailable):
            run(desk, batch_id)
    assert desk.found(batch_id).status == "finalizing"
    run(desk, batch_id)
    assert len(desk.output(batch_id)) == 45
    assert len(list(desk.storage.directory.iterdir())) == 3


def test_lines_of_an_unfinished_batch_stay(desk: Desk, line: Any) -> None:
    batch_id = settled(desk, line, 50)
    assert list(free(desk.ledger, batch_id)) == []
    assert list(free(desk.ledger, "batch_of_nobody")) == []
    assert sum(desk.ledger.read(lines.counts, batch_id).values()) == 50


def test_large_answers_are_read_a_few_at_a_time(desk: Desk, line: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAGE_BYTES", 50_000)
    limits: list[int] = []
    real = lines.ended

    def ended(*args: Any, limit: int, **rest: Any) -> Any:
        limits.append(limit)
        return real(*args, limit=limit, **rest)

    monkeypatch.setattr(module.lines, "ended", ended)
    batch_id = settled(desk, line, 60, b'{"x":"%s"}' % (b"y" * 10_000))
    run(desk, batch_id)
    assert limits[0] == 16
    assert max(limits[1:]) <= 10
    assert len(desk.output(batch_id)) == 54


def test_fifty_thousand_lines_in_bounded_memory(desk: Desk, line: Any) -> None:
    batch_id = settled(desk, line, 50_000, b'{"x":"%s"}' % (b"y" * 1_500))
    process = psutil.Process()
    before = most = process.memory_info().rss
    begun = time.perf_counter()
    for _ in assemble(desk.ledger, desk.storage, desk.home, desk.found(batch_id), lambda: 9_000):
        most = max(most, process.memory_info().rss)
    print(f"50,000 lines in {time.perf_counter() - begun:.2f} s, {(most - before) / 1e6:.0f} MB more")
    assert most - before < 60e6
    batch = desk.found(batch_id)
    assert (batch.status, batch.completed) == ("completed", 45_000)
