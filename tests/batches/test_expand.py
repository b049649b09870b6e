"""From an input file to lines: where each lies, what it is, in bounded memory."""

from __future__ import annotations

import io
import time
from typing import TYPE_CHECKING, Any

import orjson
import psutil
import pytest

from fabric.batches.expand import Limits, RawLine, expand, read_lines
from fabric.ledger import batches, lines

if TYPE_CHECKING:
    from tests.batches.conftest import Desk


def run(desk: Desk, batch_id: str, limits: Limits | None = None) -> int:
    """Expands in one go; answers in how many steps."""
    steps = expand(desk.ledger, desk.storage, desk.catalog, desk.found(batch_id), limits or Limits(), lambda: 7_000)
    return sum(1 for _ in steps)


class TestReadLines:
    @staticmethod
    def of(text: bytes, line_bytes: int = 100) -> list[RawLine]:
        return list(read_lines(io.BytesIO(text), line_bytes))

    def test_blank_lines_count_but_are_none(self) -> None:
        assert self.of(b"\n  \na\n\t\nbb") == [RawLine(3, 4, 2, b"a\n"), RawLine(5, 8, 2, b"bb")]

    def test_nothing(self) -> None:
        assert self.of(b"") == []
        assert self.of(b"\n\n") == []

    def test_carriage_returns_belong_to_their_line(self) -> None:
        assert [line.text for line in self.of(b"a\r\n\r\nb\r\n")] == [b"a\r\n", b"b\r\n"]

    @pytest.mark.parametrize("end", [b"", b"\n"])
    def test_at_the_limit(self, end: bytes) -> None:
        assert [line.text for line in self.of(b"x" * 10 + end, 10)] == [b"x" * 10 + end]

    @pytest.mark.parametrize("length", [11, 12, 70_000, 200_000])
    def test_over_the_limit_nothing_is_kept(self, length: int) -> None:
        found = self.of(b"x" * length + b"\nafter\n", 10)
        assert found == [RawLine(1, 0, length + 1, None), RawLine(2, length + 1, 6, b"after\n")]
        assert self.of(b"x" * length, 10) == [RawLine(1, 0, length, None)]


def test_lines_are_found_again_where_they_lie(each_desk: Desk, line: Any) -> None:
    desk = each_desk
    batch_id = desk.batch([line("a"), b"", line("b", "ümläut"), b"  ", line("c")])
    run(desk, batch_id)
    waiting = desk.ledger.read(lines.waiting, batch_id, after=0, limit=9)
    with desk.storage.open(desk.found(batch_id).input_file_id) as file:
        for found in waiting:
            file.seek(found.start)
            assert orjson.loads(file.read(found.length))["custom_id"] == found.custom_id
    assert [(found.line_no, found.custom_id) for found in waiting] == [(1, "a"), (3, "b"), (5, "c")]
    batch = desk.found(batch_id)
    assert (batch.status, batch.total, batch.in_progress_ms) == ("in_progress", 3, 7_000)


def test_a_repeated_custom_id_is_bad_each_time_but_the_first(desk: Desk, line: Any) -> None:
    refused = line("b", temperature=9)
    batch_id = desk.batch([line("a"), line("a"), refused, line("b"), line("a"), line("c")])
    run(desk, batch_id)
    codes = {
        ended.line_no: orjson.loads(ended.error or b"")["error"]["code"]
        for ended in desk.ledger.read(lines.ended, batch_id, after=0, limit=9)
    }
    assert codes == {
        2: "duplicate_custom_id",
        3: "invalid_value",
        4: "duplicate_custom_id",
        5: "duplicate_custom_id",
    }
    assert [w.line_no for w in desk.ledger.read(lines.waiting, batch_id, after=0, limit=9)] == [1, 6]
    assert desk.found(batch_id).failed == 4


def test_a_line_that_is_too_long_is_bad(desk: Desk, line: Any) -> None:
    batch_id = desk.batch([line("a", "x" * 5_000), line("b")])
    run(desk, batch_id, Limits(line_bytes=1_000))
    (ended,) = desk.ledger.read(lines.ended, batch_id, after=0, limit=9)
    assert orjson.loads(ended.error or b"")["error"]["code"] == "request_too_large"


def test_a_crash_in_the_middle_is_made_good_by_beginning_again(each_desk: Desk, line: Any) -> None:
    desk = each_desk
    batch_id = desk.batch([line(f"c{n}") if n % 10 else b"{" for n in range(2_500)])
    half = expand(desk.ledger, desk.storage, desk.catalog, desk.found(batch_id), Limits(), lambda: 7_000)
    next(half)
    half.close()
    assert sum(desk.ledger.read(lines.counts, batch_id).values()) == 1_000
    assert desk.found(batch_id).status == "validating"
    assert run(desk, batch_id) == 2
    batch = desk.found(batch_id)
    assert (batch.status, batch.total, batch.failed) == ("in_progress", 2_500, 250)


def test_one_that_was_overtaken_adds_nothing(desk: Desk, line: Any) -> None:
    batch_id = desk.batch([line(f"c{n}") for n in range(2_500)])
    slow = expand(desk.ledger, desk.storage, desk.catalog, desk.found(batch_id), Limits(), lambda: 7_000)
    next(slow)
    run(desk, batch_id)
    with desk.ledger.writing() as connection:
        batches.advance(connection, batch_id, "in_progress", "finalizing")
        batches.advance(connection, batch_id, "finalizing", "completed")
        lines.remove(connection, batch_id, limit=10_000)
    assert list(slow) == []
    assert desk.ledger.read(lines.counts, batch_id) == {}
    assert desk.found(batch_id).status == "completed"


def test_fifty_thousand_lines_in_bounded_memory(desk: Desk, line: Any) -> None:
    count = 50_000
    batch_id = desk.batch(line(f"request-{n}", "words " * 100) for n in range(count))
    process = psutil.Process()
    before = most = process.memory_info().rss
    begun = time.perf_counter()
    for _ in expand(desk.ledger, desk.storage, desk.catalog, desk.found(batch_id), Limits(), lambda: 7_000):
        most = max(most, process.memory_info().rss)
    print(f"{count} lines in {time.perf_counter() - begun:.2f} s, {(most - before) / 1e6:.0f} MB more")
    assert most - before < 60e6
    assert desk.found(batch_id).total == count


def test_steps_are_small(desk: Desk, line: Any) -> None:
    """Others get their turn after a chunk, also where lines are large."""
    batch_id = desk.batch(line(f"c{n}", "x" * 1_000_000) for n in range(12))
    assert run(desk, batch_id) == 3
    assert desk.ledger.read(lines.counts, batch_id) == {"open": 12}
