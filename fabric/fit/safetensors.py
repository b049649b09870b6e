"""The headers of safetensors files: names, types and sizes of tensors, without the weights.

The format (https://huggingface.co/docs/safetensors, "Format"): eight bytes with the header's length, little
endian, then a JSON object, then the tensors' bytes.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from fabric.contracts.errors import ModelFileError

#: As in the reference implementation.
_MAX_HEADER = 100_000_000


def tensor_bytes(folder: Path) -> int:
    """Bytes of all tensors of all ``*.safetensors`` files of a folder.

    Raises:
        ModelFileError: there is none, one is damaged, cut short, or missing from what the index names.
    """
    files = sorted(folder.glob("*.safetensors"))
    if missing := sorted(_indexed(folder) - {file.name for file in files}):
        raise ModelFileError(f"{folder} lacks {missing[0]}, which its index names: download it again.")
    if not files:
        raise ModelFileError(f"{folder} has no *.safetensors files: give the folder that holds the weights.")
    return sum(_size(file) for file in files)


def _indexed(folder: Path) -> set[str]:
    """Files that the index of a split model names; none if there is no index."""
    index = read_json(folder / "model.safetensors.index.json", missing={})
    names = index.get("weight_map")
    return {str(name) for name in names.values()} if isinstance(names, dict) else set()


def _size(file: Path) -> int:
    cut = ModelFileError(f"{file} is cut short or damaged: download it again.")
    try:
        with file.open("rb") as opened:
            start = opened.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else _MAX_HEADER + 1
            if length > _MAX_HEADER:
                raise cut
            header = json.loads(opened.read(length))
            size = file.stat().st_size - 8 - length
    except OSError as error:
        raise ModelFileError(f"{file} can't be read: {error.strerror}.") from None
    except ValueError:
        raise cut from None
    try:
        ends = [tensor["data_offsets"] for name, tensor in header.items() if name != "__metadata__"]
        if any(not 0 <= begin <= end <= size for begin, end in ends):
            raise cut
        return sum(end - begin for begin, end in ends)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise cut from None


def read_json(file: Path, missing: dict[str, Any] | None = None) -> dict[str, Any]:
    """A JSON object from a file; ``missing`` if there is no such file.

    Raises:
        ModelFileError: it isn't there, or isn't a JSON object.
    """
    try:
        value = json.loads(file.read_bytes())
    except FileNotFoundError:
        if missing is not None:
            return missing
        raise ModelFileError(f"{file} doesn't exist.") from None
    except OSError as error:
        raise ModelFileError(f"{file} can't be read: {error.strerror}.") from None
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ModelFileError(f"{file} isn't a JSON object.")
    return value
