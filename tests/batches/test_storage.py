"""File bytes on disk: whole or not at all."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fabric.batches.storage import LineCounter, Storage
from fabric.contracts.errors import NotFound, TooLarge, Unavailable
from fabric.contracts.ids import new_id
from fabric.contracts.sealed import Seals
from fabric.contracts.secret import Secrets

if TYPE_CHECKING:
    from tests.conftest import SmallDisk


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "files", Seals(Secrets(["s" * 32])))


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def read(storage: Storage, file_id: str) -> bytes:
    with storage.open(file_id) as file:
        return file.read()


def names(storage: Storage) -> list[str]:
    return sorted(path.name for path in storage.directory.iterdir())


async def test_what_is_saved_can_be_read(storage: Storage) -> None:
    file_id = new_id("file")
    stored = await storage.save(file_id, pieces(b"a\nb", b"b\n\n", b"c"), limit_bytes=100)
    assert (stored.path, stored.bytes, stored.lines) == (file_id, 7, 3)
    assert b"".join([piece async for piece in storage.read(file_id)]) == b"a\nbb\n\nc"


async def test_too_large_leaves_nothing(storage: Storage) -> None:
    with pytest.raises(TooLarge):
        await storage.save(new_id("file"), pieces(b"x" * 60, b"x" * 60), limit_bytes=100)
    assert names(storage) == []


@pytest.mark.parametrize("size", [10, 3_000_000], ids=["small", "large"])
async def test_a_full_disk_is_said_so_and_leaves_nothing(small_disk: SmallDisk, size: int) -> None:
    """However late it is noticed: a small file is written when it is closed."""
    storage = Storage(small_disk.folder / "files", Seals(Secrets(["s" * 32])))
    small_disk.fill()
    with pytest.raises(Unavailable, match="can't be written \\(No space left on device\\)") as caught:
        await storage.save(new_id("file"), pieces(b"x" * size), limit_bytes=10_000_000)
    assert caught.value.retry_after_s
    assert names(storage) == []
    small_disk.free()
    assert (await storage.save(new_id("file"), pieces(b"x" * size), limit_bytes=10_000_000)).bytes == size


def test_a_writer_that_fails_leaves_nothing(storage: Storage) -> None:
    with pytest.raises(RuntimeError), storage.writing(new_id("file")) as file:
        file.write(b"half")
        raise RuntimeError
    assert names(storage) == []


def test_a_draft_is_there_when_it_is_published(storage: Storage) -> None:
    file_id = new_id("file")
    with storage.draft(file_id) as draft:
        draft.file.write(b"new")
        draft.to_disk()
        assert not storage.location(file_id).exists()
        draft.publish()
        assert read(storage, file_id) == b"new"
    assert names(storage) == [file_id]


def test_a_draft_that_isnt_published_never_was(storage: Storage) -> None:
    file_id = new_id("file")
    with storage.writing(file_id) as file:
        file.write(b"old")
    with storage.draft(file_id) as draft:
        draft.file.write(b"new")
    assert read(storage, file_id) == b"old"
    assert names(storage) == [file_id]


@pytest.mark.parametrize("path", ["../etc/passwd", "file_x", "", "/etc/passwd", "batch_" + "a" * 26])
def test_only_the_fabrics_own_names_are_paths(storage: Storage, path: str) -> None:
    with pytest.raises(NotFound):
        storage.location(path)


def test_bytes_that_are_gone(storage: Storage) -> None:
    with pytest.raises(NotFound):
        storage.open(new_id("file"))
    storage.remove(new_id("file"))


def test_sweeping_takes_what_crashed_writers_left(storage: Storage) -> None:
    kept = new_id("file")
    with storage.writing(kept) as file:
        file.write(b"x")
    left = storage.directory / f".partial-{new_id('file')}-00"
    left.write_bytes(b"half")
    written = left.stat().st_mtime
    storage.sweep(written + 10)
    assert len(names(storage)) == 2
    storage.sweep(written + 90_000)
    assert names(storage) == [kept]


@pytest.mark.parametrize(
    ("parts", "lines"),
    [
        ([], 0),
        ([b"\n\n  \n"], 0),
        ([b"a"], 1),
        ([b"a\n"], 1),
        ([b"a\nb"], 2),
        ([b"a", b"b\n"], 1),
        ([b"a", b"\n", b"b"], 2),
        ([b"  ", b"a\n \n"], 1),
    ],
)
def test_lines_are_counted_across_pieces(parts: list[bytes], lines: int) -> None:
    counter = LineCounter()
    for part in parts:
        counter.add(part)
    assert counter.lines == lines
