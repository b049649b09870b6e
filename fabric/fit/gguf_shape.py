"""From a GGUF header to a shape, per architecture as llama.cpp's ``src/models/*.cpp`` reads it."""

from __future__ import annotations

from typing import Any

from fabric.contracts.errors import ModelFileError
from fabric.fit.gguf import TENSOR_TYPES, Header, Skipped, TensorInfo
from fabric.fit.shape import Attention, Latent, Layer, Recurrent, Shape, UnknownArchitecture, Weights

#: Every layer keeps every token. (Phi-3 has a window that llama.cpp doesn't use.)
_FULL = """
llama deci falcon gpt2 gptneox mpt baichuan bloom stablelm qwen qwen2 qwen2moe qwen3 qwen3moe phi2 phi3 phimoe
internlm2 minicpm gemma starcoder starcoder2 command-r dbrx olmo olmoe arctic deepseek chatglm glm4 exaone
granite granitemoe smollm3 ernie4_5 hunyuan-dense arcee dots1 nemotron refact orion codeshell jais xverse
seed_oss
"""
#: One layer of so many keeps every token, the last of each group; the others keep a window.
_PERIODS = {"gemma2": 2, "gemma3": 6, "cohere2": 4, "gpt-oss": 2, "olmo2": 4, "llama4": 4}
#: Windows that are the architecture's, where the file doesn't say.
_WINDOWS = {"gemma2": 4096, "llama4": 8192}
#: A state in the layers without KV heads, attention in the others.
_HYBRID = frozenset({"jamba", "granitehybrid"})
_STATES = frozenset({"mamba", "mamba2"})
#: Attention and a state in every layer.
_BOTH = frozenset({"falcon-h1"})
_KNOWN = frozenset(_FULL.split()) | _PERIODS.keys() | _HYBRID | _STATES | _BOTH | {"deepseek2"}

#: Types whose matrices llama.cpp's CPU backend keeps in another order. Seen in its log on x86-64 with AVX2.
_REPACKED = frozenset({"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"})
_REPACKED_ROWS = 8


def gguf_shape(header: Header) -> Shape:
    """
    Raises:
        UnknownArchitecture: we don't know how this architecture's layers remember.
        ModelFileError: a field that its need depends on is missing or impossible.
    """
    fields = _Fields(header)
    if header.architecture not in _KNOWN:
        raise UnknownArchitecture(
            f"The architecture {header.architecture!r} isn't known, so that its need for memory can't be told. "
            "Load it and look: `fabric fit` doesn't guess."
        )
    if unknown := sorted({tensor.type for tensor in header.tensors if tensor.type not in TENSOR_TYPES}):
        raise ModelFileError(f"The model has tensors of an unknown type ({unknown[0]}), whose size can't be told.")
    return Shape(
        header.architecture,
        _layers(fields),
        fields.count("embedding_length"),
        _inner(fields),
        header.vocabulary or fields.count("vocab_size"),
        _weights(header),
        header.context_length,
        _length(header.metadata.get("tokenizer.ggml.merges")),
    )


def _layers(fields: _Fields) -> tuple[Layer, ...]:
    name, count = fields.architecture, fields.count("block_count")
    if name in _STATES:
        return (_state(fields),) * count
    if name == "deepseek2" and fields.has("attention.key_length_mla"):
        names = ("attention.head_count", "attention.kv_lora_rank", "rope.dimension_count")
        return (Latent(*(fields.count(name) for name in names)),) * count
    attention = [_attention(fields, layer) for layer in range(count)]
    if name in _HYBRID:
        return tuple(layer if layer.kv_heads else _state(fields) for layer in attention)
    if name in _BOTH:
        return tuple(kept for layer in attention for kept in (layer, _state(fields)))
    return tuple(attention)


def _attention(fields: _Fields, layer: int) -> Attention:
    heads = fields.of_layer("attention.head_count", layer)
    kv_heads = fields.of_layer("attention.head_count_kv", layer, default=heads)
    if heads == 0 or kv_heads == 0:
        return Attention(heads, 0, 0, 0)
    each = fields.count("embedding_length") // heads
    key = fields.of_layer("attention.key_length", layer, default=each)
    value = fields.of_layer("attention.value_length", layer, default=each)
    return Attention(heads, kv_heads, key, value, _window(fields, layer))


def _window(fields: _Fields, layer: int) -> int | None:
    """As ``llama_hparams::set_swa_pattern``: of each period the last layer has no window."""
    period = _PERIODS.get(fields.architecture)
    window = fields.count("attention.sliding_window", default=_WINDOWS.get(fields.architecture, 0))
    if period is None or not window:
        return None
    pattern = fields.value("attention.sliding_window_pattern")
    if isinstance(pattern, tuple):
        return window if layer < len(pattern) and pattern[layer] else None
    if isinstance(pattern, int) and pattern > 0:
        period = pattern
    return window if layer % period < period - 1 else None


def _state(fields: _Fields) -> Recurrent:
    """As ``llama_hparams::n_embd_r`` and ``n_embd_s``."""
    inner, size = fields.count("ssm.inner_size"), fields.count("ssm.state_size")
    groups = fields.count("ssm.group_count", default=0)
    mixed = inner + 2 * groups * size
    return Recurrent(
        (fields.count("ssm.conv_kernel") - 1) * mixed,
        size * inner,
        fields.count("embedding_length") + 4 * inner + 3 * mixed,
    )


def _inner(fields: _Fields) -> int:
    dense = max(
        fields.of_layer("feed_forward_length", layer, default=0) for layer in range(fields.count("block_count"))
    )
    used = fields.count("expert_used_count", default=0) if fields.count("expert_count", default=0) else 0
    expert = fields.count("expert_feed_forward_length", default=dense)
    shared = fields.count(
        "expert_shared_feed_forward_length", default=expert * fields.count("expert_shared_count", default=0)
    )
    return max(dense, used * expert + shared)


def _weights(header: Header) -> Weights:
    tensors = header.tensors
    tied = not any(tensor.name == "output.weight" for tensor in tensors)
    repackable = 0
    kept: list[TensorInfo] = []
    for tensor in tensors:
        fits = (
            TENSOR_TYPES[tensor.type][0] in _REPACKED and len(tensor.shape) > 1 and not tensor.shape[1] % _REPACKED_ROWS
        )
        embeds = tensor.name == "token_embd.weight"
        # Rows of the embedding are looked up where they are; where it is the output too, that one is a copy.
        if fits and (not embeds or tied):
            repackable += tensor.size
        if not fits or embeds:
            kept.append(tensor)
    total = sum(tensor.size for tensor in tensors)
    mapped = max((t.offset + t.size for t in kept), default=0) - min((t.offset for t in kept), default=0)
    # Offsets of different files say nothing about each other: the careful answer is that all of them stay.
    return Weights(total, repackable, mapped if header.parts == 1 else total)


def _length(value: Any) -> int:
    return value.length if isinstance(value, Skipped) else len(value) if isinstance(value, tuple) else 0


class _Fields:
    """The fields of the model's own architecture."""

    def __init__(self, header: Header) -> None:
        self.architecture = header.architecture
        self._metadata = header.metadata

    def value(self, name: str) -> Any:
        return self._metadata.get(f"{self.architecture}.{name}")

    def has(self, name: str) -> bool:
        return self.value(name) is not None

    def count(self, name: str, default: int | None = None) -> int:
        return self._checked(name, self.value(name), default)

    def of_layer(self, name: str, layer: int, default: int | None = None) -> int:
        value = self.value(name)
        if isinstance(value, tuple):
            value = value[layer] if layer < len(value) else None
        return self._checked(name, value, default)

    def _checked(self, name: str, value: Any, default: int | None) -> int:
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**40:
            problem = "is missing" if value is None else "isn't a whole number"
            raise ModelFileError(f"The model's field {self.architecture}.{name} {problem}: its need can't be told.")
        return value
