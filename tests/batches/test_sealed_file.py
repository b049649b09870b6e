"""Sealed files: read from any place, refused when anything of them was changed."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.batches.sealed_file import CHUNK, sealed_reader
from fabric.batches.storage import Storage
from fabric.contracts.errors import BrokenSeal
from fabric.contracts.ids import new_id
from fabric.contracts.sealed import HEAD, Seals
from fabric.contracts.secret import Secrets

SEALS = Seals(Secrets(["s" * 32]))
SEALED_CHUNK = CHUNK + 16
SIZES = (0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 5)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path, SEALS)


def kept(storage: Storage, content: bytes, *, piece: int = 10_000) -> str:
    file_id = new_id("file")
    with storage.writing(file_id) as file:
        for start in range(0, len(content), piece):
            file.write(content[start : start + piece])
    return file_id


def read(storage: Storage, file_id: str) -> bytes:
    with storage.open(file_id) as file:
        return file.read()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("piece", [7_001, CHUNK, 5 * CHUNK])
def test_what_was_written_is_read(storage: Storage, size: int, piece: int) -> None:
    content = os.urandom(size)
    file_id = kept(storage, content, piece=piece)
    assert read(storage, file_id) == content
    with storage.open(file_id) as file:
        assert file.seek(0, io.SEEK_END) == size
    chunks = max(1, -(-size // CHUNK))
    assert storage.location(file_id).stat().st_size == HEAD + size + 16 * chunks


@given(data=st.data())
def test_from_any_place(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    storage = Storage(tmp_path_factory.mktemp("files"), SEALS)
    content = os.urandom(2 * CHUNK + 100)
    with storage.open(kept(storage, content)) as file:
        for _ in range(5):
            start = data.draw(st.integers(0, len(content) + 5))
            length = data.draw(st.integers(0, len(content)))
            file.seek(start)
            assert file.read(length) == content[start : start + length]


def test_lines_across_chunks(storage: Storage) -> None:
    lines = [b"%d" % n * 3_001 + b"\n" for n in range(100)]
    with storage.open(kept(storage, b"".join(lines))) as file:
        assert list(file) == lines


def test_nothing_of_it_lies_there_plain(storage: Storage) -> None:
    with storage.draft(new_id("file")) as draft:
        draft.file.write(b"canary-4711" * 20_000)
        draft.to_disk()
        assert b"canary" not in draft.partial.read_bytes()


def test_more_cant_be_written_after_the_end(storage: Storage) -> None:
    with storage.draft(new_id("file")) as draft:
        draft.to_disk()
        with pytest.raises(ValueError, match="finished"):
            draft.file.write(b"more")


def _swapped(data: bytes) -> bytes:
    first, second = data[HEAD : HEAD + SEALED_CHUNK], data[HEAD + SEALED_CHUNK : HEAD + 2 * SEALED_CHUNK]
    return data[:HEAD] + second + first + data[HEAD + 2 * SEALED_CHUNK :]


@pytest.mark.parametrize(
    "harm",
    [
        lambda data: data[:HEAD],
        lambda data: data[: HEAD - 1],
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: data[: HEAD + 2 * SEALED_CHUNK],
        lambda data: data[: HEAD + SEALED_CHUNK] + data[HEAD + 2 * SEALED_CHUNK :],
        lambda data: data + data[HEAD : HEAD + SEALED_CHUNK],
        _swapped,
        lambda data: data[: HEAD + 100] + bytes([data[HEAD + 100] ^ 1]) + data[HEAD + 101 :],
        lambda data: data[:20] + bytes([data[20] ^ 1]) + data[21:],
        lambda data: b'{"custom_id": "a"}\n' * 20,
    ],
    ids=[
        "no chunk",
        "no head",
        "empty",
        "cut",
        "longer",
        "without its last chunk",
        "without a middle one",
        "a chunk more",
        "chunks swapped",
        "a bit of a chunk",
        "a bit of the head",
        "plain",
    ],
)
def test_what_was_changed_is_refused(storage: Storage, harm: Callable[[bytes], bytes]) -> None:
    file_id = kept(storage, os.urandom(2 * CHUNK + 300))
    path = storage.location(file_id)
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(BrokenSeal):
        read(storage, file_id)


def test_a_file_under_anothers_name_is_refused(storage: Storage) -> None:
    one, other = kept(storage, b"one"), kept(storage, b"other")
    storage.location(one).replace(storage.location(other))
    with pytest.raises(BrokenSeal):
        read(storage, other)


def test_a_file_that_is_refused_is_closed(storage: Storage) -> None:
    path = storage.directory / "plain"
    path.write_bytes(b"plain" * 100)
    file = path.open("rb")
    with pytest.raises(BrokenSeal):
        sealed_reader(file, SEALS, new_id("file"))
    assert file.closed


def test_a_changed_secret_reads_what_the_one_before_wrote(storage: Storage) -> None:
    file_id = kept(storage, b"content")
    assert read(Storage(storage.directory, Seals(Secrets(["n" * 32, "s" * 32]))), file_id) == b"content"
    with pytest.raises(BrokenSeal, match="FABRIC_SECRET doesn't hold"):
        read(Storage(storage.directory, Seals(Secrets(["n" * 32]))), file_id)
