"""The shipped model with more blocks: it says the same, and takes as long for it as a larger model does.

In the blocks that are added the weights of both outputs are zero, so that they add nothing to what goes through; each
is computed as any other one.
"""

from __future__ import annotations

import struct
from pathlib import Path

from fabric.fit.gguf import TensorInfo, read_model
from fabric.settings.defaults import shipped_model

_ALIGNMENT = 32
_COUNT = b"llama.block_count" + struct.pack("<I", 4)  # u32
_SILENT = (".attn_output.weight", ".ffn_down.weight")


def write_deeper(path: Path, times: int) -> None:
    """A file at ``path`` with ``times`` as many blocks."""
    source = shipped_model().read_bytes()
    header = read_model(shipped_model())
    blocks = int(header.metadata["llama.block_count"])
    first_tensor = min(source.index(_named(tensor.name)) for tensor in header.tensors)
    metadata = bytearray(source[24:first_tensor])
    struct.pack_into("<I", metadata, metadata.index(_COUNT) + len(_COUNT), blocks * times)
    infos, data, offset = b"", [], 0
    for name, tensor, silent in _tensors(header.tensors, blocks, times):
        start = header.data_offset + tensor.offset
        data.append(bytes(tensor.size) if silent else source[start : start + tensor.size])
        data.append(bytes(-tensor.size % _ALIGNMENT))
        shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        infos += _named(name) + shape + struct.pack("<IQ", tensor.type, offset)
        offset += tensor.size + -tensor.size % _ALIGNMENT
    count = len(data) // 2
    head = source[:8] + struct.pack("<Q", count) + source[16:24] + metadata + infos
    path.write_bytes(b"".join((head, bytes(-len(head) % _ALIGNMENT), *data)))


def _tensors(tensors: tuple[TensorInfo, ...], blocks: int, times: int) -> list[tuple[str, TensorInfo, bool]]:
    made = [(tensor.name, tensor, False) for tensor in tensors]
    for copy in range(1, times):
        for tensor in tensors:
            kind, _, rest = tensor.name.partition(".")
            if kind == "blk":
                number, _, part = rest.partition(".")
                made.append((f"blk.{int(number) + copy * blocks}.{part}", tensor, tensor.name.endswith(_SILENT)))
    return made


def _named(name: str) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode()
