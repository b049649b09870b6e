"""The reader of model files: what it finds, and that no damage makes it fail in another way than by name."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.contracts.errors import ModelFileError
from fabric.fit.gguf import TENSOR_TYPES, Header, Skipped, read_header, read_model
from fabric.settings.defaults import shipped_model

F32, Q8_0, UNKNOWN = 0, 8, 99
_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def typed(kind: int, value: Any) -> bytes:
    """A metadata value with its type in front; of an array, ``value`` is the type and the items."""
    if kind == 9:
        of, items = value
        return struct.pack("<IIQ", 9, of, len(items)) + b"".join(typed(of, item)[4:] for item in items)
    return struct.pack("<I", kind) + (text(value) if kind == 8 else struct.pack("<" + _CODES[kind], value))


def gguf(
    fields: dict[str, tuple[int, Any]] | None = None,
    tensors: tuple[tuple[str, tuple[int, ...], int, int], ...] = (("w", (4, 2), F32, 0),),
    *,
    version: int = 3,
    data: int = 64,
) -> bytes:
    """A file: fields by name, tensors as (name, shape, type, offset), and so many bytes of weights."""
    fields = {"general.architecture": (8, "llama"), **(fields or {})}
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(fields))
    head += b"".join(text(name) + typed(*value) for name, value in fields.items())
    for name, shape, kind, offset in tensors:
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
    return head + bytes(-len(head) % 32) + bytes(data)


def read(data: bytes) -> Header:
    return read_header(io.BytesIO(data))


def test_the_shipped_model() -> None:
    header = read_model(shipped_model())
    assert (header.version, header.architecture, header.quantisation) == (3, "llama", "Q8_0")
    assert (header.context_length, header.embedding_length, header.vocabulary) == (1024, 256, 4096)
    assert header.chat_template and header.generates and header.pools
    assert header.file_size == shipped_model().stat().st_size
    last = max(header.tensors, key=lambda tensor: tensor.offset)
    assert header.file_size - 32 < header.data_offset + last.offset + last.size <= header.file_size


def test_every_kind_of_value() -> None:
    values = {
        0: 255,
        1: -1,
        2: 65535,
        3: -2,
        4: 2**32 - 1,
        5: -3,
        6: 0.5,
        7: True,
        8: "ö",
        10: 2**64 - 1,
        11: -4,
        12: 0.1,
    }
    arrays = {f"array.{kind}": (9, (kind, [value, value])) for kind, value in values.items()}
    header = read(gguf({f"value.{kind}": (kind, value) for kind, value in values.items()} | arrays))
    assert {kind: header.metadata[f"value.{kind}"] for kind in values} == values
    assert {kind: header.metadata[f"array.{kind}"] for kind in values} == {k: (v, v) for k, v in values.items()}


def test_long_arrays_are_counted_and_not_kept() -> None:
    fields = {
        "tokenizer.ggml.tokens": (9, (8, ["a"] * 5000)),
        "tokenizer.ggml.scores": (9, (6, [0.0] * 5000)),
        "after": (4, 7),
    }
    header = read(gguf(fields))
    assert header.metadata["tokenizer.ggml.scores"] == Skipped(5000)
    assert header.vocabulary == 5000
    assert header.metadata["after"] == 7


def test_texts_that_are_not_utf_8_are_kept_readable() -> None:
    assert read(gguf({"general.name": (8, b"\xff!")})).metadata["general.name"] == "\\xff!"


def test_tensors_and_where_they_lie() -> None:
    header = read(gguf(tensors=(("a", (32, 2), Q8_0, 0), ("b", (3,), F32, 96), ("c", (5,), UNKNOWN, 128)), data=160))
    assert [(t.name, t.size) for t in header.tensors] == [("a", 68), ("b", 12), ("c", 0)]
    assert header.quantisation == "Q8_0"
    assert header.data_offset % 32 == 0
    aligned = read(gguf({"general.alignment": (4, 64)}, data=128))
    assert aligned.data_offset % 64 == 0


def test_encoders_do_not_generate() -> None:
    assert not read(gguf({"llama.attention.causal": (7, False)})).generates
    assert read(gguf({"llama.attention.causal": (7, True)})).generates


def test_sizes_of_tensor_types_are_those_of_whole_bytes() -> None:
    for name, block, size in TENSOR_TYPES.values():
        assert block in (1, 32, 64, 128, 256) and 0.0625 <= size / block <= 8, name


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b"GGU", "isn't a GGUF file"),
        (b'{"__metadata__": {}}', "isn't a GGUF file"),
        (b"GGUF", "is cut short"),
        (gguf(version=1), "version 1"),
        (gguf(version=4), "version 4"),
        (b"GGUF\0\0\0\x03" + bytes(16), "big-endian"),
        (gguf()[:40], "is cut short"),
        (gguf(data=31), "it has .* of .* bytes"),
        (gguf(tensors=(("w", (4,), F32, 1024),)), "it has .* of .* bytes"),
        (gguf(tensors=(("w", (4,), UNKNOWN, 1024),)), "it has .* of .* bytes"),
        (gguf(tensors=(("w", (4,), F32, 0), ("w", (4,), F32, 32))), "a tensor appears twice"),
        (gguf(tensors=(("w", (31,), Q8_0, 0),)), "don't fit its type"),
        (gguf(tensors=(("w", (), F32, 0),)), "dimensions"),
        (gguf(tensors=(("w", (1,) * 5, F32, 0),)), "dimensions"),
        (gguf(tensors=(("w", (0,), F32, 0),)), "impossible shape"),
        (gguf(tensors=(("w", (2**62, 2**62), F32, 0),)), "impossible shape"),
        (gguf({"general.alignment": (4, 3)}), "alignment"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "more than any model"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), "more than any model"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**63), "name is too long"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<I", 77), "unknown type"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 9, 1), "unknown type"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 8, 2**61), "is cut short"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 10, 2**61), "is cut short"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + 2 * (text("a") + typed(4, 1)), "appears twice"),
    ],
)  # fmt: skip
def test_damage_is_named(data: bytes, says: str) -> None:
    with pytest.raises(ModelFileError, match=says):
        read(data)


def test_wherever_it_is_cut_it_is_refused() -> None:
    whole = gguf({"tokenizer.ggml.tokens": (9, (8, ["a", "bc"])), "x": (12, 1.0)}, data=32)
    read(whole)
    for length in range(len(whole)):
        with pytest.raises(ModelFileError):
            read(whole[:length])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200).map(lambda tail: b"GGUF" + tail) | st.binary(max_size=200))
def test_any_bytes_are_a_header_or_refused(data: bytes) -> None:
    try:
        read(data)
    except ModelFileError as error:
        assert error.message.endswith((".", ")."))


_WHOLE = gguf({"tokenizer.ggml.tokens": (9, (8, ["a", "bc"])), "n": (9, (4, [1, 2])), "general.alignment": (4, 32)})


@settings(max_examples=500, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(_WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_damaged_file_is_a_header_or_refused(changes: list[tuple[int, int]]) -> None:
    data = bytearray(_WHOLE)
    for at, value in changes:
        data[at] = value
    try:
        header = read(bytes(data))
    except ModelFileError:
        return
    # Whatever the values are now, asking for them works.
    _ = header.architecture, header.context_length, header.vocabulary, header.quantisation, header.parts
    _ = header.chat_template, header.generates, header.pools


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    fifo, locked = tmp_path / "fifo", tmp_path / "locked"
    os.mkfifo(fifo)
    locked.write_bytes(gguf())
    for path, says in (
        (tmp_path / "none.gguf", "none.gguf doesn't exist"),
        (tmp_path, "is a directory"),
        (fifo, "isn't a file"),
        (tmp_path / ("a" * 300), "can't be read"),
        (Path("\0"), "isn't a path"),
    ):
        with pytest.raises(ModelFileError, match=says):
            read_model(path)
    if os.geteuid() != 0:
        locked.chmod(0)
        with pytest.raises(ModelFileError, match="no right"):
            read_model(locked)


def part(number: int, count: int) -> bytes:
    return gguf({"split.no": (2, number), "split.count": (2, count)}, tensors=((f"w{number}", (4,), F32, 0),))


def test_a_split_model_is_all_of_its_parts(tmp_path: Path) -> None:
    names = [tmp_path / f"m-{n:05d}-of-00003.gguf" for n in (1, 2, 3)]
    for number, path in enumerate(names):
        path.write_bytes(part(number, 3))
    header = read_model(names[0])
    assert [tensor.name for tensor in header.tensors] == ["w0", "w1", "w2"]
    assert header.file_size == sum(path.stat().st_size for path in names)
    with pytest.raises(ModelFileError, match="first part, m-00001-of-00003"):
        read_model(names[1])
    names[2].write_bytes(part(2, 3)[:-60])
    with pytest.raises(ModelFileError, match=r"m-00003-of-00003\.gguf is cut short"):
        read_model(names[0])
    names[2].unlink()
    with pytest.raises(ModelFileError, match=r"m-00003-of-00003\.gguf doesn't exist"):
        read_model(names[0])
    renamed = tmp_path / "m.gguf"
    names[0].rename(renamed)
    with pytest.raises(ModelFileError, match="the names that they came with"):
        read_model(renamed)
