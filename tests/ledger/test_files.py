"""Files: what a tenant sees, and what must not be deleted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fabric.contracts.errors import Conflict, NotFound
from fabric.ledger import Ledger, batches, files
from fabric.ledger.files import file_object

if TYPE_CHECKING:
    from tests.ledger.conftest import Rows


def test_a_file_is_its_tenants_own(rows: Rows, ledger: Ledger) -> None:
    file = rows.file()
    assert ledger.read(files.get, "default", "file_1") == file
    with pytest.raises(NotFound):
        ledger.read(files.get, "other", "file_1")


def test_the_same_file_again_changes_nothing(rows: Rows, ledger: Ledger) -> None:
    rows.file(bytes=10)
    rows.file(bytes=11)
    assert ledger.read(files.get, "default", "file_1").bytes == 10


def test_names_that_no_database_takes_are_mended(rows: Rows, ledger: Ledger) -> None:
    rows.file(filename="a\0b\ud800.jsonl")
    assert ledger.read(files.get, "default", "file_1").filename == "ab?.jsonl"


def test_a_deleted_file_is_gone_for_its_tenant_only(rows: Rows, ledger: Ledger) -> None:
    rows.file()
    ledger.write(files.delete, "default", "file_1", 5_000)
    with pytest.raises(NotFound):
        ledger.read(files.get, "default", "file_1")
    found = ledger.read(files.find, "file_1")
    assert found is not None
    assert found.deleted_ms == 5_000
    assert ledger.read(files.find, "file_9") is None


def test_the_input_of_an_unfinished_batch_stays(rows: Rows, ledger: Ledger) -> None:
    rows.file()
    rows.batch()
    with pytest.raises(Conflict):
        ledger.write(files.delete, "default", "file_1", 5_000)
    ledger.write(batches.fail, "batch_1", [], 3_000)
    ledger.write(files.delete, "default", "file_1", 5_000)


@pytest.mark.parametrize(("oldest_first", "order"), [(False, [3, 2, 1]), (True, [1, 2, 3])])
def test_pages(rows: Rows, ledger: Ledger, oldest_first: bool, order: list[int]) -> None:
    for number in (1, 2, 3):
        rows.file(f"file_{number}", created_ms=100 * number)
    rows.file("file_4", purpose="batch_output")
    names = [f"file_{number}" for number in order]
    first, more = ledger.read(files.page, "default", limit=2, purpose="batch", oldest_first=oldest_first)
    assert ([file.id for file in first], more) == (names[:2], True)
    rest, more = ledger.read(
        files.page, "default", limit=2, purpose="batch", oldest_first=oldest_first, after=first[-1].id
    )
    assert ([file.id for file in rest], more) == (names[2:], False)


def test_the_api_sees_seconds(rows: Rows) -> None:
    shown = file_object(rows.file())
    assert (shown["id"], shown["created_at"], shown["purpose"]) == ("file_1", 1, "batch")
