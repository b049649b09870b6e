"""From a Hugging Face folder (``config.json`` and safetensors) to a shape, per ``model_type`` as in transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fabric.contracts.errors import ModelFileError
from fabric.fit.safetensors import read_json, tensor_bytes
from fabric.fit.shape import Attention, Latent, Layer, Recurrent, Shape, UnknownArchitecture, Weights

#: Every layer keeps every token, unless ``layer_types`` or ``sliding_window`` say otherwise.
_ATTENTION = """
llama mistral mixtral qwen2 qwen2_moe qwen3 qwen3_moe gemma phi phi3 olmo olmo2 olmo3 olmoe granite granitemoe
starcoder2 stablelm gpt_neox smollm3 exaone4 ministral seed_oss gpt_oss gemma2 gemma3_text cohere cohere2
"""
#: One layer of so many keeps every token, where ``layer_types`` doesn't say which.
_PERIODS = {"gemma2": 2, "gemma3_text": 6, "gpt_oss": 2, "cohere2": 4, "exaone4": 4, "olmo3": 4}
_LATENT = frozenset({"deepseek_v2", "deepseek_v3"})
_STATES = frozenset({"mamba", "falcon_mamba"})
_KNOWN = frozenset(_ATTENTION.split()) | _LATENT | _STATES | {"jamba"}
_NUMBER_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def hf_shape(folder: Path) -> Shape:
    """
    Raises:
        UnknownArchitecture: we don't know how this model's layers remember.
        ModelFileError: a file or a field that its need depends on is missing or damaged.
    """
    config = _Config(read_json(folder / "config.json"))
    if config.kind not in _KNOWN:
        raise UnknownArchitecture(
            f"The model type {config.kind!r} isn't known, so that its need for memory can't be told. "
            "Load it and look: `fabric fit` doesn't guess."
        )
    inner = config.optional("intermediate_size", default=config.count("hidden_size"))
    expert = config.optional("moe_intermediate_size", default=inner)
    used = config.optional("num_experts_per_tok", default=0)
    shared = config.optional(
        "shared_expert_intermediate_size", default=expert * config.optional("n_shared_experts", default=0)
    )
    return Shape(
        config.kind,
        _layers(config),
        config.count("hidden_size"),
        max(inner, used * expert + shared),
        config.count("vocab_size"),
        Weights(tensor_bytes(folder)),
        config.optional("max_position_embeddings", default=0) or None,
        number_bytes=_NUMBER_BYTES.get(str(config.value("torch_dtype") or config.value("dtype")), 2),
    )


def _layers(config: _Config) -> tuple[Layer, ...]:
    count = config.count("num_hidden_layers")
    if config.kind in _LATENT:
        latent = Latent(
            config.count("num_attention_heads"), config.count("kv_lora_rank"), config.count("qk_rope_head_dim")
        )
        return (latent,) * count
    if config.kind in _STATES:
        inner = config.optional(
            "intermediate_size", default=config.count("hidden_size") * config.optional("expand", default=2)
        )
        return (_state(config, inner, config.count("state_size"), config.optional("conv_kernel", default=4)),) * count
    if config.kind == "jamba":
        inner = config.count("hidden_size") * config.optional("mamba_expand", default=2)
        state = _state(
            config, inner, config.optional("mamba_d_state", default=16), config.optional("mamba_d_conv", default=4)
        )
        period, offset = (
            config.optional("attn_layer_period", default=8),
            config.optional("attn_layer_offset", default=4),
        )
        return tuple(_attention(config, None) if layer % period == offset else state for layer in range(count))
    return tuple(_attention(config, _window(config, layer)) for layer in range(count))


def _attention(config: _Config, window: int | None) -> Attention:
    heads = config.count("num_attention_heads")
    each = config.optional("head_dim", default=config.count("hidden_size") // max(heads, 1))
    return Attention(heads, config.optional("num_key_value_heads", default=heads), each, each, window)


def _state(config: _Config, inner: int, size: int, kernel: int) -> Recurrent:
    return Recurrent((kernel - 1) * inner, size * inner, config.count("hidden_size") + 7 * inner)


def _window(config: _Config, layer: int) -> int | None:
    """``layer_types`` where the file has them, else what the model's code does by default."""
    window = config.optional("sliding_window", default=0)
    # Qwen's configurations name a window that they don't use, unless they say so.
    if not window or not config.value("use_sliding_window", default=not config.kind.startswith("qwen")):
        return None
    types = config.value("layer_types")
    if isinstance(types, list):
        kind = types[layer] if layer < len(types) else None
        if kind not in ("full_attention", "sliding_attention"):
            raise UnknownArchitecture(f"The layer type {kind!r} isn't known: the need for memory can't be told.")
        return window if kind == "sliding_attention" else None
    if config.kind in _PERIODS:
        period = config.optional("sliding_window_pattern", default=_PERIODS[config.kind])
        return window if layer % period < period - 1 else None
    if config.kind.startswith("qwen"):
        return window if layer >= config.optional("max_window_layers", default=0) else None
    return window


class _Config:
    """``config.json``; of a model with several parts, the part that writes text."""

    def __init__(self, values: dict[str, Any]) -> None:
        text = values.get("text_config")
        self._values = {**values, **text} if isinstance(text, dict) else values
        self.kind = str(self._values.get("model_type", ""))

    def value(self, name: str, default: Any = None) -> Any:
        return self._values.get(name, default)

    def count(self, name: str) -> int:
        value = self.value(name)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**40:
            problem = "is missing" if value is None else "isn't a whole number"
            raise ModelFileError(f"`{name}` in config.json {problem}: the model's need can't be told.")
        return value

    def optional(self, name: str, default: int) -> int:
        return default if self.value(name) is None else self.count(name)
