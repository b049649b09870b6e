"""The append-only file after a full disk or a loss of power: what is mended loses nothing that it holds."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis

from fabric.contracts.errors import ConfigError
from fabric.store import append_only
from fabric.store.append_only import Condition, condition
from tests.conftest import SmallDisk, Valkey

COMMANDS = st.lists(st.lists(st.binary(max_size=40), min_size=1, max_size=4), min_size=1, max_size=8)


def encoded(command: list[bytes]) -> bytes:
    return b"*%d\r\n" % len(command) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in command)


class Folder:
    """A server's folder with one file of commands."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path / "appendonlydir" / "appendonly.aof.1.incr.aof"
        self.file.parent.mkdir()
        (self.file.parent / "appendonly.aof.1.base.rdb").write_bytes(b"REDIS")
        (self.file.parent / "appendonly.aof.manifest").write_text(
            "file appendonly.aof.1.base.rdb seq 1 type b\nfile appendonly.aof.1.incr.aof seq 1 type i startoffset 5\n"
        )

    def mended(self, content: bytes) -> tuple[bytes, list[str]]:
        self.file.write_bytes(content)
        said = append_only.mend(self.path)
        return self.file.read_bytes(), said


@pytest.fixture(scope="module")
def folder() -> Iterator[Folder]:
    with tempfile.TemporaryDirectory() as path:
        yield Folder(Path(path))


@given(COMMANDS, st.data())
def test_holes_between_commands_are_taken_out_and_nothing_else(
    folder: Folder, commands: list[list[bytes]], data: st.DataObject
) -> None:
    parts = list(map(encoded, commands))
    holes = [data.draw(st.integers(0, 50)) for _ in parts]
    content = b"".join(b"\0" * hole + part for hole, part in zip(holes, parts, strict=True))
    mended, said = folder.mended(content)
    assert mended == b"".join(parts)
    assert len(said) == sum(hole > 0 for hole in holes)


@given(COMMANDS, st.integers(1, 5000), st.data())
def test_zeros_at_the_end_are_cut_off_with_the_half_command_before_them(
    folder: Folder, commands: list[list[bytes]], zeros: int, data: st.DataObject
) -> None:
    parts = list(map(encoded, commands))
    whole = b"".join(parts[:-1])
    half = parts[-1][: data.draw(st.integers(0, len(parts[-1]) - 1))].rstrip(b"\0")
    mended, said = folder.mended(whole + half + b"\0" * zeros)
    assert mended == whole
    assert len(said) == 1


@given(COMMANDS, st.data())
def test_a_healthy_file_and_one_that_valkey_mends_itself_stay_as_they_are(
    folder: Folder, commands: list[list[bytes]], data: st.DataObject
) -> None:
    content = b"".join(map(encoded, commands))
    cut = content[: data.draw(st.integers(0, len(content)))]
    if cut.endswith(b"\0"):  # of a value: not to be told from what a loss of power leaves
        cut += b"x"
    assert folder.mended(cut) == (cut, [])
    ends = list(accumulate(map(len, map(encoded, commands)), initial=0))
    folder.file.write_bytes(content)
    assert condition(folder.file) == Condition(len(content), ends[-1])


@pytest.mark.parametrize(
    "bad", [b"garbage\r\n", b"*1\r\n$4\r\nPI\0\0\0\0\0\0*1\r\n$4\r\nPING\r\n", b"*1\r\n$4\r\nPINGxx"]
)
def test_what_could_lose_something_is_left_alone(folder: Folder, bad: bytes) -> None:
    good = encoded([b"PING"])
    assert folder.mended(good + b"\0\0" + good + bad) == (good + b"\0\0" + good + bad, [])
    found = condition(folder.file)
    assert found.bad
    assert found.end == 2 * len(good) + 2


def test_annotations_are_no_damage(folder: Folder) -> None:
    good = b"#TS:1700000000\r\n" + encoded([b"PING"])
    assert folder.mended(good) == (good, [])
    assert folder.mended(good + b"\0" + good)[0] == good + good


def test_values_that_look_like_a_hole_are_none(folder: Folder) -> None:
    content = encoded([b"SET", b"k", b"x\r\n\0\0\0*3\r\n\0\0#"])
    assert folder.mended(content) == (content, [])


def test_without_room_it_says_what_to_do_and_leaves_the_file(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    content = b"\0" + encoded([b"PING"])
    folder.file.write_bytes(content)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="MiB free"):
        append_only.mend(folder.path)
    assert folder.file.read_bytes() == content
    assert sorted(path.name for path in folder.file.parent.iterdir() if "mended" in path.name) == []


def test_a_server_without_data_has_nothing_to_mend(tmp_path: Path) -> None:
    assert append_only.mend(tmp_path) == []
    assert append_only.sizes(tmp_path) == (0, 0)


def test_a_valkey_whose_disk_was_full_starts_again_with_all_that_it_had(small_disk: SmallDisk) -> None:
    server = Valkey(small_disk.folder)
    server.start()
    try:
        keys = small_disk.leave_a_hole(server)
        server.kill()
        holes = [hole for file in append_only.files(small_disk.folder) for hole in condition(file).holes]
        assert len(holes) == 1, "the cause is gone: is `mend` still needed?"
        with pytest.raises(RuntimeError, match="Bad file format"):
            server.start()
        assert len(append_only.mend(small_disk.folder)) == 1
        server.start()
        with Redis(unix_socket_path=str(server.socket)) as redis:
            assert set(redis.keys()) == keys
    finally:
        server.kill()
