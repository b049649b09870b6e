"""What a GGUF file says of itself: metadata and the list of its tensors, without reading the weights.

Versions 2 and 3, little endian, as in ggml's ``docs/gguf.md``. A file that ends before its header or
its last tensor does is refused here, where a message can say so, not in the engine.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import struct
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from fabric.contracts.errors import ModelFileError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32
_MAX_DIMENSIONS = 4
#: Bounds for what a damaged header may make us do; real models stay far below.
_MAX_FIELDS = 65_536
_MAX_TENSORS = 1_048_576
_MAX_NAME_BYTES = 65_535
#: Longer arrays (vocabularies) are skipped: only their length is kept.
_KEPT_ITEMS = 4_096

_STRING, _ARRAY = 8, 9
_NUMBERS = {
    kind: struct.Struct(f"<{code}")
    for kind, code in zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True)
}
_U32, _U64 = 4, 10

#: Tensor type -> name, values in a block, bytes of a block.
TENSOR_TYPES: dict[int, tuple[str, int, int]] = {
    **{0: ("F32", 1, 4), 1: ("F16", 1, 2), 28: ("F64", 1, 8), 30: ("BF16", 1, 2)},
    **{24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8)},
    **{2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24)},
    **{8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110)},
    **{12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292)},
    **{16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50)},
    **{20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136)},
    **{29: ("IQ1_M", 256, 56), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66)},
    **{39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18)},
}

_SPLIT_NAME = re.compile(r"^(.+)-(\d{5})-of-(\d{5})\.gguf$")


@dataclass(frozen=True, slots=True)
class Skipped:
    """An array that was too long to keep."""

    length: int


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """``offset`` counts from the start of the data. ``size`` is in bytes; 0 for a type that is unknown here."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int
    size: int


@dataclass(frozen=True)
class Header:
    """A model file's header. Sizes are in bytes, lengths in tokens."""

    version: int
    metadata: dict[str, Any] = field(repr=False)
    tensors: tuple[TensorInfo, ...] = field(repr=False)
    data_offset: int
    file_size: int

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    @property
    def context_length(self) -> int | None:
        """What the model was trained for."""
        return self._number("context_length")

    @property
    def embedding_length(self) -> int | None:
        return self._number("embedding_length")

    @property
    def chat_template(self) -> str | None:
        template = self.metadata.get("tokenizer.chat_template")
        return template if isinstance(template, str) and template else None

    @property
    def vocabulary(self) -> int | None:
        """How many tokens the model knows."""
        tokens = self.metadata.get("tokenizer.ggml.tokens")
        if isinstance(tokens, Skipped):
            return tokens.length
        return len(tokens) if isinstance(tokens, tuple) else None

    @property
    def generates(self) -> bool:
        """False for encoders, which only make embeddings."""
        return self.metadata.get(f"{self.architecture}.attention.causal") is not False

    @property
    def pools(self) -> bool:
        """Whether the file says how token embeddings become one; 0 means that they don't."""
        return bool(self._number("pooling_type"))

    @property
    def parts(self) -> int:
        """Files that the model is split into."""
        count = self.metadata.get("split.count")
        return count if isinstance(count, int) and count > 1 else 1

    @cached_property
    def quantisation(self) -> str:
        """The tensor type that most of the weights have."""
        weights: Counter[int] = Counter()
        for tensor in self.tensors:
            weights[tensor.type] += tensor.size
        if not weights:
            return "none"
        kind = weights.most_common(1)[0][0]
        return TENSOR_TYPES[kind][0] if kind in TENSOR_TYPES else f"type {kind}"

    def _number(self, name: str) -> int | None:
        """A whole number of the model's architecture; of numbers per layer, the largest."""
        value = self.metadata.get(f"{self.architecture}.{name}")
        if isinstance(value, tuple) and value and all(isinstance(item, int) for item in value):
            value = max(value)
        return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def read_model(path: Path) -> Header:
    """The header of a model file; of a split model, the first part's. All parts are looked at.

    Raises:
        ModelFileError: missing, unreadable, cut short, or not a GGUF file of a known version.
    """
    header = _read_file(path)
    if header.parts == 1:
        return header
    match = _SPLIT_NAME.match(path.name)
    if match is None or int(match[3]) != header.parts:
        raise ModelFileError(
            f"{path} is one of {header.parts} parts of a model, but its name doesn't end in -00001-of-"
            f"{header.parts:05d}.gguf: give the parts the names that they came with."
        )
    if int(match[2]) != 1:
        first = f"{match[1]}-00001-of-{match[3]}.gguf"
        raise ModelFileError(f"{path} is a later part of a split model: set `model` to the first part, {first}.")
    others = [
        _read_file(path.with_name(f"{match[1]}-{part:05d}-of-{match[3]}.gguf")) for part in range(2, header.parts + 1)
    ]
    return replace(
        header,
        tensors=header.tensors + tuple(tensor for other in others for tensor in other.tensors),
        file_size=header.file_size + sum(other.file_size for other in others),
    )


def _read_file(path: Path) -> Header:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ModelFileError("is a directory: set `model` to the GGUF file in it.")
        if not stat.S_ISREG(mode):
            raise ModelFileError("isn't a file: set `model` to a GGUF file.")
        with path.open("rb") as file:
            return read_header(file)
    except ModelFileError as error:
        raise ModelFileError(f"{path} {error.message}") from None
    except FileNotFoundError:
        raise ModelFileError(f"{path} doesn't exist: set `model` to a GGUF file.") from None
    except PermissionError:
        raise ModelFileError(f"{path} can't be read: the user that runs the worker has no right to.") from None
    except OSError as error:
        reason = os.strerror(error.errno or errno.EIO)
        raise ModelFileError(f"{path} can't be read: {reason}.") from None
    except ValueError:  # a zero byte in the name
        raise ModelFileError("The name of the model file isn't a path: set `model` to a GGUF file.") from None


def read_header(file: BinaryIO) -> Header:
    """Reads from the file's start. Messages of errors lack the subject: the file's name.

    Raises:
        ModelFileError: not GGUF, not a known version, damaged, or shorter than it says.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    reader = _Reader(file, size)
    magic = file.read(4)
    if magic != _MAGIC:
        what = "is empty" if size == 0 else "isn't a GGUF file"
        raise ModelFileError(f"{what}: set `model` to a model in GGUF format (safetensors must be converted first).")
    version = reader.number(_U32)
    if version not in _VERSIONS:
        if version & 0xFFFF == 0 and version:
            raise ModelFileError("is a big-endian GGUF file: convert it for this machine.")
        raise ModelFileError(f"has GGUF version {version}; versions 2 and 3 are supported: convert the model again.")
    tensor_count, field_count = reader.number(_U64), reader.number(_U64)
    if tensor_count > _MAX_TENSORS or field_count > _MAX_FIELDS:
        raise _damaged("it claims to hold more than any model does")
    metadata: dict[str, Any] = {}
    for _ in range(field_count):
        key = reader.string(limit=_MAX_NAME_BYTES)
        if key in metadata:
            raise _damaged("a metadata field appears twice")
        metadata[key] = reader.value(reader.number(_U32))
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        raise _damaged("its alignment isn't a power of two")
    tensors = tuple(_tensor(reader) for _ in range(tensor_count))
    if len({tensor.name for tensor in tensors}) != tensor_count:
        raise _damaged("a tensor appears twice")
    data_offset = -(-file.tell() // alignment) * alignment
    end = max((tensor.offset + max(tensor.size, 1) for tensor in tensors), default=0)
    if tensors and data_offset + end > size:
        raise ModelFileError(f"is cut short: it has {size} of {data_offset + end} bytes. Download or copy it again.")
    return Header(version, metadata, tensors, data_offset, size)


def _tensor(reader: _Reader) -> TensorInfo:
    name = reader.string(limit=_MAX_NAME_BYTES)
    dimensions = reader.number(_U32)
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise _damaged("a tensor has an impossible number of dimensions")
    shape = tuple(int(reader.number(_U64)) for _ in range(dimensions))
    kind, offset = reader.number(_U32), reader.number(_U64)
    count = 1
    for length in shape:
        count *= length
    if count == 0 or count >= 2**63:
        raise _damaged("a tensor has an impossible shape")
    _, block, block_bytes = TENSOR_TYPES.get(kind, ("", 1, 0))
    if shape[0] % block:
        raise _damaged("a tensor's rows don't fit its type")
    return TensorInfo(name, shape, kind, offset, count // block * block_bytes)


class _Reader:
    """Numbers and texts from a file that may end anywhere."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size

    def _take(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) < count:
            raise self._cut_short()
        return data

    def number(self, kind: int) -> Any:
        form = _NUMBERS[kind]
        return form.unpack(self._take(form.size))[0]

    def string(self, limit: int | None = None) -> str:
        length = self.number(_U64)
        if limit is not None and length > limit:
            raise _damaged("a name is too long")
        self._fits(length)
        return _text(self._take(length))

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array()
        if kind not in _NUMBERS:
            raise _damaged("a metadata field has an unknown type")
        return self.number(kind)

    def _array(self) -> Any:
        kind, length = self.number(_U32), self.number(_U64)
        keep = length <= _KEPT_ITEMS
        if kind in _NUMBERS:
            form = _NUMBERS[kind]
            self._fits(length * form.size)
            if not keep:
                self._file.seek(length * form.size, os.SEEK_CUR)
                return Skipped(length)
            return tuple(self.number(kind) for _ in range(length))
        if kind != _STRING:
            raise _damaged("an array has an unknown type")
        self._fits(length * 8)
        if keep:
            return tuple(_text(self._take(self._length())) for _ in range(length))
        for _ in range(length):
            self._take(self._length())
        return Skipped(length)

    def _length(self) -> int:
        length: int = self.number(_U64)
        self._fits(length)
        return length

    def _fits(self, count: int) -> None:
        """A length from the file is believed only as far as the file goes."""
        if count > self._size - self._file.tell():
            raise self._cut_short()

    def _cut_short(self) -> ModelFileError:
        return ModelFileError(
            f"is cut short or damaged: its header doesn't end within its {self._size} bytes. Download or copy it again."
        )


def _text(data: bytes) -> str:
    """Vocabularies hold pieces of characters, which aren't UTF-8."""
    return data.decode(errors="backslashreplace")


def _damaged(what: str) -> ModelFileError:
    return ModelFileError(f"is damaged: {what}. Download or copy it again, and compare checksums.")
