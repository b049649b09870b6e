"""Lines of batches: one outcome each, and counts that agree with them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from fabric.ledger import Ledger, batches, lines
from fabric.ledger.lines import NewLine, Outcome, WaitingLine

if TYPE_CHECKING:
    from tests.ledger.conftest import Rows


def line(number: int, state: lines.State = "open", error: bytes | None = None) -> NewLine:
    return NewLine(number, f"c{number}", 100 * number, 99, state, error)


def done(number: int, text: bytes = b"{}") -> Outcome:
    return Outcome(number, "completed", response=text)


class TestAdd:
    def test_lines_wait_in_order_behind_a_number(self, rows: Rows, ledger: Ledger) -> None:
        rows.running(lines_=5)
        found = ledger.read(lines.waiting, "batch_1", after=2, limit=2)
        assert found == [WaitingLine(3, "c3", 300, 99), WaitingLine(4, "c4", 400, 99)]

    def test_the_first_verdict_on_a_line_stays(self, rows: Rows, ledger: Ledger) -> None:
        rows.batch()
        ledger.write(lines.add, "batch_1", [line(1), line(2, "failed", b"bad")])
        ledger.write(lines.add, "batch_1", [line(1, "failed", b"late"), line(2), line(3)])
        assert ledger.read(lines.counts, "batch_1") == {"open": 2, "failed": 1}

    def test_no_lines_are_no_statement(self, ledger: Ledger) -> None:
        ledger.write(lines.add, "batch_1", [])
        assert ledger.read(lines.counts, "batch_1") == {}


class TestSettle:
    def test_answers_what_changed(self, rows: Rows, ledger: Ledger) -> None:
        rows.running(lines_=4)
        outcomes = [done(1), Outcome(2, "failed", error=b"e"), Outcome(3, "expired")]
        assert ledger.write(lines.settle, "batch_1", outcomes) == (1, 2)
        assert ledger.read(lines.counts, "batch_1") == {"open": 1, "completed": 1, "failed": 1, "expired": 1}

    def test_a_line_keeps_its_first_outcome(self, rows: Rows, ledger: Ledger) -> None:
        rows.running(lines_=2)
        ledger.write(lines.settle, "batch_1", [done(1, b"first")])
        assert ledger.write(lines.settle, "batch_1", [Outcome(1, "failed", error=b"late")]) == (0, 0)
        (kept,) = ledger.read(lines.ended, "batch_1", after=0, limit=10)
        assert (kept.state, kept.response, kept.error) == ("completed", b"first", None)

    def test_of_two_at_once_the_first_counts(self, rows: Rows, ledger: Ledger) -> None:
        rows.running(lines_=1)
        assert ledger.write(lines.settle, "batch_1", [Outcome(1, "failed", error=b"e"), done(1)]) == (0, 1)

    def test_lines_that_are_not_there_are_left_out(self, rows: Rows, ledger: Ledger) -> None:
        rows.running(lines_=1)
        assert ledger.write(lines.settle, "batch_1", [done(7)]) == (0, 0)

    def test_two_at_once_count_a_line_once(self, rows: Rows, ledger: Ledger) -> None:
        rows.running(lines_=200)
        begin = threading.Barrier(2)
        counted: list[int] = []

        def settle() -> None:
            begin.wait()
            for first in range(1, 200, 20):
                outcomes = [done(number) for number in range(first, first + 20)]
                with ledger.writing() as connection:
                    batches.hold(connection, ["batch_1"])
                    completed, failed = lines.settle(connection, "batch_1", outcomes)
                    batches.count(connection, "batch_1", completed=completed, failed=failed)
                counted.append(completed)

        threads = [threading.Thread(target=settle) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(counted) == 200
        assert rows.found().completed == 200


class TestClose:
    def test_ends_only_what_is_open(self, rows: Rows, ledger: Ledger) -> None:
        rows.running(lines_=3)
        ledger.write(lines.settle, "batch_1", [done(2)])
        assert ledger.write(lines.close, "batch_1", "cancelled") == 2
        assert ledger.read(lines.counts, "batch_1") == {"cancelled": 2, "completed": 1}


class TestInHand:
    def test_counts_open_lines_up_to_the_mark(self, rows: Rows, ledger: Ledger) -> None:
        rows.running("batch_1", lines_=5)
        rows.running("batch_2", lines_=5)
        ledger.write(batches.fed, "batch_1", 0, 3)
        ledger.write(lines.settle, "batch_1", [done(2), done(5)])
        assert ledger.read(lines.in_hand) == {"batch_1": 2}
        batch = ledger.read(batches.get, "default", "batch_1")
        assert ledger.read(lines.handed_over, batch, limit=10) == [1, 3]
        assert ledger.read(lines.handed_over, batch, limit=10, after=1) == [3]


class TestRemove:
    def test_takes_the_first_ones(self, rows: Rows, ledger: Ledger) -> None:
        rows.running(lines_=5)
        rows.running("batch_2", lines_=1)
        assert ledger.write(lines.remove, "batch_1", limit=2) == 2
        assert [w.line_no for w in ledger.read(lines.waiting, "batch_1", after=0, limit=9)] == [3, 4, 5]
        assert ledger.write(lines.remove, "batch_1", limit=9) == 3
        assert ledger.write(lines.remove, "batch_1", limit=9) == 0
        assert ledger.read(lines.counts, "batch_2") == {"open": 1}

    def test_leftovers_are_lines_of_batches_that_ended(self, rows: Rows, ledger: Ledger) -> None:
        rows.running("batch_1")
        rows.batch("batch_2")
        ledger.write(lines.add, "batch_2", [line(1)])
        ledger.write(batches.fail, "batch_2", [], 3_000)
        assert ledger.read(lines.leftovers) == ["batch_2"]


class TestIndex:
    def test_open_lines_are_found_by_their_index(self, rows: Rows, ledger: Ledger) -> None:
        """Without it every look at a batch would read all that it ever had."""
        rows.running(lines_=10)
        if ledger.engine.dialect.name != "sqlite":
            return  # PostgreSQL rightly reads so small a table whole
        with ledger.reading() as connection:
            plan = connection.exec_driver_sql(
                "EXPLAIN QUERY PLAN SELECT line_no FROM batch_lines WHERE batch_id = 'batch_1' AND state = 'open'"
                " AND line_no > 3 ORDER BY line_no LIMIT 5"
            ).all()
        assert "ix_batch_lines_open" in str(plan)


class TestPlannedLines:
    """Of batches that are planned as a whole: handed over by group and place."""

    def test_what_is_placed_and_what_is_not(self, rows: Rows, ledger: Ledger) -> None:
        rows.running("batch_1", lines_=0)
        new = [NewLine(n, str(n), n * 10, 10, "open", group_no=n % 2) for n in range(1, 7)]
        ledger.write(lines.add, "batch_1", new)
        assert ledger.read(lines.unplaced, "batch_1") == {0: 3, 1: 3}
        ledger.write(lines.place, "batch_1", [(1, "a"), (2, "b"), (3, "a")])
        assert ledger.read(lines.placed, ["batch_1", "batch_2"]) == {"batch_1": {(1, "a"): 2, (0, "b"): 1}}
        assert ledger.read(lines.unplaced, "batch_1") == {0: 2, 1: 1}
        assert [line.line_no for line in ledger.read(lines.of_group, "batch_1", 0, limit=5)] == [4, 6]
        ledger.write(lines.settle, "batch_1", [done(1)])
        assert ledger.read(lines.placed, ["batch_1"]) == {"batch_1": {(1, "a"): 1, (0, "b"): 1}}
        ledger.write(lines.place, "batch_1", [(1, "b")])  # it has ended
        assert ledger.read(lines.placed, ["batch_1"]) == {"batch_1": {(1, "a"): 1, (0, "b"): 1}}

    def test_lost_ones_are_not_placed_any_more(self, rows: Rows, ledger: Ledger) -> None:
        rows.running("batch_1", lines_=0)
        ledger.write(lines.add, "batch_1", [NewLine(n, None, 0, 1, "open", group_no=0) for n in (1, 2)])
        ledger.write(lines.place, "batch_1", [(1, "a"), (2, "a")])
        ledger.write(batches.unfed, ["batch_1"])
        assert ledger.read(lines.placed, ["batch_1"]) == {}
        assert ledger.read(lines.unplaced, "batch_1") == {0: 2}

    def test_groups_go_with_the_lines(self, rows: Rows, ledger: Ledger) -> None:
        rows.running("batch_1", lines_=0)
        ledger.write(lines.add_groups, "batch_1", {0: b'{"id":"x"}', 1: b"{}"})
        ledger.write(lines.add_groups, "batch_1", {0: b'{"id":"y"}'})
        assert ledger.read(lines.groups, "batch_1") == {0: '{"id":"y"}'}
        ledger.write(lines.remove, "batch_1", limit=10)
        assert ledger.read(lines.groups, "batch_1") == {}
