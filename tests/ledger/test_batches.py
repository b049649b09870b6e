"""Batches: the life of one, and what others see of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fabric.contracts.errors import Conflict, NotFound
from fabric.ledger import Ledger, batches
from fabric.ledger.batches import batch_object

if TYPE_CHECKING:
    from tests.ledger.conftest import Rows


class TestCreate:
    def test_a_new_batch_is_validating(self, rows: Rows) -> None:
        batch = rows.batch(metadata={"team": "a"})
        assert (batch.status, batch.total, batch.open) == ("validating", 0, 0)
        assert batch.metadata == {"team": "a"}

    def test_the_same_key_is_the_same_batch(self, rows: Rows, ledger: Ledger) -> None:
        first = rows.new_batch("batch_1", idempotency_key="k", fingerprint="f")
        again = rows.new_batch("batch_2", idempotency_key="k", fingerprint="f")
        assert ledger.write(batches.create, first)[1] is True
        batch, new = ledger.write(batches.create, again)
        assert (batch.id, new) == ("batch_1", False)

    def test_the_same_key_for_something_else_is_a_conflict(self, rows: Rows, ledger: Ledger) -> None:
        rows.batch("batch_1", idempotency_key="k", fingerprint="f")
        with pytest.raises(Conflict):
            ledger.write(batches.create, rows.new_batch("batch_2", idempotency_key="k", fingerprint="g"))

    def test_keys_are_a_tenants_own(self, rows: Rows) -> None:
        rows.batch("batch_1", idempotency_key="k", fingerprint="f")
        assert rows.batch("batch_2", tenant="other", idempotency_key="k", fingerprint="f").id == "batch_2"


class TestReading:
    def test_another_tenants_batch_is_not_found(self, rows: Rows, ledger: Ledger) -> None:
        rows.batch()
        with pytest.raises(NotFound):
            ledger.read(batches.get, "other", "batch_1")

    def test_pages_are_newest_first(self, rows: Rows, ledger: Ledger) -> None:
        for number, created in ((1, 100), (2, 300), (3, 200), (4, 300)):
            rows.batch(f"batch_{number}", created_ms=created)
        rows.batch("batch_5", tenant="other", created_ms=400)
        first, more = ledger.read(batches.page, "default", limit=3)
        assert ([batch.id for batch in first], more) == (["batch_4", "batch_2", "batch_3"], True)
        rest, more = ledger.read(batches.page, "default", limit=3, after="batch_3")
        assert ([batch.id for batch in rest], more) == (["batch_1"], False)

    def test_unfinished_ones_are_oldest_first(self, rows: Rows, ledger: Ledger) -> None:
        rows.batch("batch_1", created_ms=200)
        rows.running("batch_2", created_ms=100)
        rows.batch("batch_3")
        ledger.write(batches.fail, "batch_3", [{"message": "no"}], 5_000)
        assert [batch.id for batch in ledger.read(batches.unfinished)] == ["batch_2", "batch_1"]


class TestMoving:
    def test_advances_from_the_expected_status_only(self, rows: Rows, ledger: Ledger) -> None:
        rows.running()
        move = lambda connection: batches.advance(  # noqa: E731
            connection, "batch_1", "in_progress", "finalizing", finalizing_ms=3_000
        )
        assert ledger.write(move) is True
        assert ledger.write(move) is False
        assert rows.found().finalizing_ms == 3_000

    def test_cancel_twice_is_once(self, rows: Rows, ledger: Ledger) -> None:
        rows.running()
        assert ledger.write(batches.cancel, "default", "batch_1", 3_000).status == "cancelling"
        assert ledger.write(batches.cancel, "default", "batch_1", 4_000).cancelling_ms == 3_000

    def test_what_has_ended_cant_be_cancelled(self, rows: Rows, ledger: Ledger) -> None:
        rows.batch()
        ledger.write(batches.fail, "batch_1", [], 3_000)
        with pytest.raises(Conflict):
            ledger.write(batches.cancel, "default", "batch_1", 4_000)

    def test_the_mark_moves_from_where_it_is_expected(self, rows: Rows, ledger: Ledger) -> None:
        rows.running(lines_=9)
        assert ledger.write(batches.fed, "batch_1", 0, 4) is True
        assert ledger.write(batches.fed, "batch_1", 0, 2) is False
        assert rows.found().fed_until == 4
        ledger.write(batches.unfed, ["batch_1"])
        assert rows.found().fed_until == 0

    def test_hold_answers_the_ones_that_exist(self, rows: Rows, ledger: Ledger) -> None:
        rows.batch("batch_1")
        rows.batch("batch_2")
        assert list(ledger.write(batches.hold, {"batch_2", "batch_1", "batch_9"})) == ["batch_1", "batch_2"]


def test_the_api_sees_seconds_and_counts(rows: Rows, ledger: Ledger) -> None:
    rows.running(lines_=3)
    ledger.write(lambda connection: batches.count(connection, "batch_1", completed=2, failed=1))
    shown = batch_object(rows.found())
    assert shown["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    assert (shown["created_at"], shown["in_progress_at"], shown["expires_at"]) == (1, 2, 86_401)
    assert shown["errors"] is None
    assert rows.found().open == 0
