"""Models of many shapes as GGUF files: right names and sizes of everything, weights all zero."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fabric.fit.gguf import TENSOR_TYPES

F32, F16, Q4_0, Q8_0 = 0, 1, 2, 8
_U32, _F32, _BOOL, _STRING, _ARRAY, _I32 = 4, 6, 7, 8, 9, 5
Tensor = tuple[str, tuple[int, ...], int]


@dataclass(frozen=True)
class Made:
    """``fields`` are those of the architecture; numbers without a point are whole, lists are per layer."""

    architecture: str
    fields: dict[str, Any]
    tensors: list[Tensor]
    vocabulary: int
    more: dict[str, Any] = field(default_factory=dict)


def write(path: Path, made: Made) -> Path:
    """A sparse file: zeros take no room on disk, but llama.cpp reads them all."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += [f"w{number}" for number in range(len(words), made.vocabulary)]
    fields: dict[str, bytes] = {
        "general.architecture": _value(made.architecture),
        **{f"{made.architecture}.{name}": _value(value) for name, value in made.fields.items()},
        **{name: _value(value) for name, value in made.more.items()},
        "tokenizer.ggml.model": _value("llama"),
        "tokenizer.ggml.tokens": _array(_STRING, [_text(word) for word in words]),
        "tokenizer.ggml.scores": _array(_F32, [struct.pack("<f", -number) for number in range(len(words))]),
        "tokenizer.ggml.token_type": _array(
            _I32, [struct.pack("<i", {0: 2, 1: 3, 2: 3}.get(n, 6 if n < 259 else 1)) for n in range(len(words))]
        ),
        "tokenizer.ggml.bos_token_id": _value(1),
        "tokenizer.ggml.eos_token_id": _value(2),
    }
    head = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(made.tensors), len(fields)))
    for name, value in fields.items():
        head += _text(name) + value
    offset = 0
    for name, shape, kind in made.tensors:
        head += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        offset += -(-_size(shape, kind) // 32) * 32
    with path.open("wb") as file:
        file.write(head)
        file.truncate(-(-len(head) // 32) * 32 + offset)
    return path


def weights(made: Made) -> int:
    """Bytes of all tensors."""
    return sum(_size(shape, kind) for _, shape, kind in made.tensors)


def _size(shape: tuple[int, ...], kind: int) -> int:
    _, block, size = TENSOR_TYPES[kind]
    count = 1
    for length in shape:
        count *= length
    return count // block * size


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def _array(kind: int, items: list[bytes]) -> bytes:
    return struct.pack("<IIQ", _ARRAY, kind, len(items)) + b"".join(items)


def _value(value: Any) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, bool):
        return struct.pack("<IB", _BOOL, value)
    if isinstance(value, list) and isinstance(value[0], bool):
        return _array(_BOOL, [struct.pack("<B", item) for item in value])
    if isinstance(value, list):
        return _array(_U32, [struct.pack("<I", item) for item in value])
    return struct.pack("<II", _U32, value) if isinstance(value, int) else struct.pack("<If", _F32, value)


def _ends(width: int, vocabulary: int, kind: int, *, tied: bool = False) -> list[Tensor]:
    ends: list[Tensor] = [("token_embd.weight", (width, vocabulary), kind), ("output_norm.weight", (width,), F32)]
    return ends if tied else [*ends, ("output.weight", (width, vocabulary), kind)]


def _gate_up_down(layer: int, width: int, inner: int, kind: int) -> Iterator[Tensor]:
    yield f"blk.{layer}.ffn_gate.weight", (width, inner), kind
    yield f"blk.{layer}.ffn_up.weight", (width, inner), kind
    yield f"blk.{layer}.ffn_down.weight", (inner, width), kind


def _experts(layer: int, width: int, inner: int, experts: int, kind: int) -> Iterator[Tensor]:
    yield f"blk.{layer}.ffn_gate_inp.weight", (width, experts), F32
    yield f"blk.{layer}.ffn_gate_exps.weight", (width, inner, experts), kind
    yield f"blk.{layer}.ffn_up_exps.weight", (width, inner, experts), kind
    yield f"blk.{layer}.ffn_down_exps.weight", (inner, width, experts), kind


def _attention(layer: int, width: int, heads: int, kv_heads: int, head: int, kind: int) -> Iterator[Tensor]:
    yield f"blk.{layer}.attn_q.weight", (width, heads * head), kind
    yield f"blk.{layer}.attn_k.weight", (width, kv_heads * head), kind
    yield f"blk.{layer}.attn_v.weight", (width, kv_heads * head), kind
    yield f"blk.{layer}.attn_output.weight", (heads * head, width), kind


def llama(
    *, layers: int, width: int, heads: int, kv_heads: int, inner: int, vocabulary: int = 512, kind: int = F16,
    experts: int = 0, tied: bool = False, trained: int = 32768,
) -> Made:  # fmt: skip
    """Grouped-query attention; with ``experts``, a mixture of them (Mixtral)."""
    head = width // heads
    fields = {
        **{"block_count": layers, "context_length": trained, "embedding_length": width, "feed_forward_length": inner},
        **{"attention.head_count": heads, "attention.head_count_kv": kv_heads, "rope.dimension_count": head},
        "attention.layer_norm_rms_epsilon": 1e-5,
    } | ({"expert_count": experts, "expert_used_count": 2} if experts else {})
    tensors = _ends(width, vocabulary, kind, tied=tied)
    for layer in range(layers):
        tensors += [(f"blk.{layer}.{norm}_norm.weight", (width,), F32) for norm in ("attn", "ffn")]
        tensors += _attention(layer, width, heads, kv_heads, head, kind)
        tensors += _experts(layer, width, inner, experts, kind) if experts else _gate_up_down(layer, width, inner, kind)
    return Made("llama", fields, tensors, vocabulary)


def gemma3(
    *, layers: int, width: int, heads: int, kv_heads: int, head: int, inner: int, window: int, vocabulary: int = 512,
    kind: int = F16,
) -> Made:  # fmt: skip
    """Sliding windows in five layers of six."""
    fields = {
        **{"block_count": layers, "context_length": 32768, "embedding_length": width, "feed_forward_length": inner},
        **{"attention.head_count": heads, "attention.head_count_kv": kv_heads, "attention.key_length": head},
        **{"attention.value_length": head, "attention.sliding_window": window},
        "attention.layer_norm_rms_epsilon": 1e-6,
    }
    tensors = _ends(width, vocabulary, kind, tied=True)
    norms = ("attn", "post_attention", "ffn", "post_ffw")
    for layer in range(layers):
        tensors += [(f"blk.{layer}.{norm}_norm.weight", (width,), F32) for norm in norms]
        tensors += [(f"blk.{layer}.attn_{part}_norm.weight", (head,), F32) for part in "qk"]
        tensors += _attention(layer, width, heads, kv_heads, head, kind)
        tensors += _gate_up_down(layer, width, inner, kind)
    return Made("gemma3", fields, tensors, vocabulary)


def deepseek2(
    *, layers: int, width: int, heads: int, rank: int, rope: int, head: int, inner: int, experts: int = 4,
    vocabulary: int = 512, kind: int = F16,
) -> Made:  # fmt: skip
    """Latent attention in all layers; the first is dense, the others are mixtures of experts."""
    fields = {
        **{"block_count": layers, "context_length": 32768, "embedding_length": width, "feed_forward_length": inner},
        **{"attention.head_count": heads, "attention.head_count_kv": 1, "attention.kv_lora_rank": rank},
        **{"attention.q_lora_rank": rank},
        **{
            "attention.key_length": rank + rope,
            "attention.value_length": rank,
            "attention.key_length_mla": head + rope,
        },
        **{"attention.value_length_mla": head, "rope.dimension_count": rope, "vocab_size": vocabulary},
        **{"leading_dense_block_count": 1, "expert_count": experts, "expert_used_count": 2, "expert_shared_count": 1},
        **{"expert_feed_forward_length": inner // 2, "expert_weights_scale": 1.0, "expert_weights_norm": False},
        "attention.layer_norm_rms_epsilon": 1e-6,
    }
    tensors = _ends(width, vocabulary, kind)
    for layer in range(layers):
        tensors += [(f"blk.{layer}.{norm}_norm.weight", (width,), F32) for norm in ("attn", "ffn")]
        tensors += [
            (f"blk.{layer}.attn_kv_a_norm.weight", (rank,), F32),
            (f"blk.{layer}.attn_q_a.weight", (width, rank), kind),
            (f"blk.{layer}.attn_q_a_norm.weight", (rank,), F32),
            (f"blk.{layer}.attn_q_b.weight", (rank, heads * (head + rope)), kind),
            (f"blk.{layer}.attn_kv_a_mqa.weight", (width, rank + rope), kind),
            (f"blk.{layer}.attn_k_b.weight", (head, rank, heads), kind),
            (f"blk.{layer}.attn_v_b.weight", (rank, head, heads), kind),
            (f"blk.{layer}.attn_output.weight", (heads * head, width), kind),
        ]
        if layer == 0:
            tensors += _gate_up_down(layer, width, inner, kind)
            continue
        tensors += _experts(layer, width, inner // 2, experts, kind)
        tensors += [
            (f"blk.{layer}.ffn_gate_shexp.weight", (width, inner // 2), kind),
            (f"blk.{layer}.ffn_up_shexp.weight", (width, inner // 2), kind),
            (f"blk.{layer}.ffn_down_shexp.weight", (inner // 2, width), kind),
        ]
    return Made("deepseek2", fields, tensors, vocabulary)


def _mamba_layer(layer: int, width: int, inner: int, state: int, rank: int, kind: int) -> Iterator[Tensor]:
    yield f"blk.{layer}.ssm_in.weight", (width, 2 * inner), kind
    yield f"blk.{layer}.ssm_conv1d.weight", (4, inner), F32
    yield f"blk.{layer}.ssm_conv1d.bias", (inner,), F32
    yield f"blk.{layer}.ssm_x.weight", (inner, rank + 2 * state), kind
    yield f"blk.{layer}.ssm_dt.weight", (rank, inner), kind
    yield f"blk.{layer}.ssm_dt.bias", (inner,), F32
    yield f"blk.{layer}.ssm_a", (state, inner), F32
    yield f"blk.{layer}.ssm_d", (inner,), F32
    yield f"blk.{layer}.ssm_out.weight", (inner, width), kind


def _ssm(inner: int, state: int, rank: int) -> dict[str, Any]:
    names = {"conv_kernel": 4, "inner_size": inner, "state_size": state, "time_step_rank": rank}
    return {f"ssm.{name}": value for name, value in names.items()}


def mamba(*, layers: int, width: int, state: int = 16, vocabulary: int = 512, kind: int = F16) -> Made:
    """A recurrent state in all layers, and no KV cache."""
    inner, rank = 2 * width, width // 16
    fields = {
        **{"block_count": layers, "context_length": 1048576, "embedding_length": width, "feed_forward_length": 0},
        **{"attention.head_count": 0, "attention.layer_norm_rms_epsilon": 1e-5},
        **_ssm(inner, state, rank),
    }
    tensors = _ends(width, vocabulary, kind)
    for layer in range(layers):
        tensors.append((f"blk.{layer}.attn_norm.weight", (width,), F32))
        tensors += _mamba_layer(layer, width, inner, state, rank, kind)
    return Made("mamba", fields, tensors, vocabulary)


def mamba2(
    *, layers: int, width: int, state: int = 64, groups: int = 1, head: int = 64, vocabulary: int = 512, kind: int = F16
) -> Made:
    """As Mamba, with a state per head and groups of inputs in the convolution."""
    inner = 2 * width
    heads, mixed = inner // head, inner + 2 * groups * state
    fields = {
        **{"block_count": layers, "context_length": 1048576, "embedding_length": width, "feed_forward_length": 0},
        **{"attention.head_count": 0, "attention.layer_norm_rms_epsilon": 1e-5, "ssm.group_count": groups},
        **_ssm(inner, state, heads),
    }
    tensors = _ends(width, vocabulary, kind)
    for layer in range(layers):
        tensors += [
            (f"blk.{layer}.attn_norm.weight", (width,), F32),
            (f"blk.{layer}.ssm_in.weight", (width, inner + mixed + heads), kind),
            (f"blk.{layer}.ssm_conv1d.weight", (4, mixed), F32),
            (f"blk.{layer}.ssm_conv1d.bias", (mixed,), F32),
            (f"blk.{layer}.ssm_dt.bias", (heads,), F32),
            (f"blk.{layer}.ssm_a", (1, heads), F32),
            (f"blk.{layer}.ssm_d", (1, heads), F32),
            (f"blk.{layer}.ssm_norm.weight", (inner // groups, groups), F32),
            (f"blk.{layer}.ssm_out.weight", (inner, width), kind),
        ]
    return Made("mamba2", fields, tensors, vocabulary)


def jamba(
    *, layers: int, width: int, heads: int, kv_heads: int, inner: int, every: int = 4, state: int = 16,
    vocabulary: int = 512, kind: int = F16,
) -> Made:  # fmt: skip
    """Attention in one layer of ``every``, a recurrent state in the others."""
    attends = [layer % every == every // 2 for layer in range(layers)]
    rank = width // 16
    fields = {
        **{"block_count": layers, "context_length": 262144, "embedding_length": width, "feed_forward_length": inner},
        **{"attention.head_count": heads, "attention.head_count_kv": [kv_heads * attend for attend in attends]},
        **{"attention.layer_norm_rms_epsilon": 1e-6, "expert_count": 0, "expert_used_count": 0},
        **_ssm(2 * width, state, rank),
    }
    tensors = _ends(width, vocabulary, kind)
    for layer, attend in enumerate(attends):
        tensors += [(f"blk.{layer}.{norm}_norm.weight", (width,), F32) for norm in ("attn", "ffn")]
        if attend:
            tensors += _attention(layer, width, heads, kv_heads, width // heads, kind)
        else:
            tensors += _mamba_layer(layer, width, 2 * width, state, rank, kind)
            tensors += [(f"blk.{layer}.ssm_dt_norm.weight", (rank,), F32)]
            tensors += [(f"blk.{layer}.ssm_{part}_norm.weight", (state,), F32) for part in "bc"]
        tensors += _gate_up_down(layer, width, inner, kind)
    return Made("jamba", fields, tensors, vocabulary)


ARCHITECTURES: dict[str, Callable[..., Made]] = {
    made.__name__: made for made in (llama, gemma3, deepseek2, mamba, mamba2, jamba)
}


@pytest.fixture
def header_file(tmp_path: Path) -> Callable[..., Path]:
    """A file with these fields, and no weights to speak of."""

    def make(architecture: str, fields: dict[str, Any]) -> Path:
        return write(tmp_path / "header.gguf", Made(architecture, fields, [("output.weight", (32, 1), F32)], 512))

    return make


@pytest.fixture
def model_file(tmp_path: Path) -> Callable[..., Path]:
    """``model_file("llama", layers=2, …)`` writes one."""

    def make(architecture: str, **shape: Any) -> Path:
        return write(tmp_path / f"{architecture}.gguf", ARCHITECTURES[architecture](**shape))

    return make
