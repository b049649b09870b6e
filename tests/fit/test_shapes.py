"""From files to shapes: what each architecture's layers keep, as llama.cpp's own log has it for the same files."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fabric.contracts.errors import ModelFileError
from fabric.fit import Ask, LlamaCpp, UnknownArchitecture, Vllm, gguf_shape, hf_shape, read_model
from fabric.fit.shape import Attention, Latent, Recurrent
from fabric.settings.defaults import shipped_model

MIB = 2**20
Write = Callable[..., Path]

SMALL = {"layers": 2, "width": 512, "heads": 8, "kv_heads": 4, "inner": 1408}
GEMMA = {"layers": 12, "width": 512, "heads": 8, "kv_heads": 4, "head": 64, "inner": 1408, "window": 512}
LATENT = {"layers": 3, "width": 512, "heads": 8, "rank": 256, "rope": 64, "head": 64, "inner": 1024}


@pytest.mark.parametrize(
    ("architecture", "shape", "context", "parallel", "kind", "mib"),
    [
        ("llama", SMALL, 1024, 1, "f16", 2.0),
        ("llama", SMALL | {"kv_heads": 8}, 1024, 1, "f16", 4.0),
        ("llama", SMALL, 4096, 4, "f16", 32.0),
        ("llama", SMALL, 1024, 1, "q8_0", 1.0625),
        ("gemma3", GEMMA, 4096, 1, "f16", 8.0 + 10.0),
        ("gemma3", GEMMA, 4096, 3, "f16", 24.0 + 30.0),
        ("deepseek2", LATENT, 1024, 1, "f16", 1.875),
        ("deepseek2", LATENT | {"heads": 16}, 1024, 2, "f16", 3.75),
        ("mamba", {"layers": 2, "width": 512}, 1024, 4, "f16", 0.59375),
        ("mamba2", {"layers": 2, "width": 512, "state": 128}, 1024, 1, "f16", 1.029296875),
        ("jamba", SMALL | {"layers": 8}, 4096, 2, "f16", 16.0 + 0.890625),
    ],
)
def test_the_cache_is_what_llama_cpp_says(
    model_file: Write, architecture: str, shape: dict[str, Any], context: int, parallel: int, kind: str, mib: float
) -> None:
    """The numbers are from its log: KV buffer size plus RS buffer size."""
    engine = LlamaCpp(gguf_shape(read_model(model_file(architecture, **shape))))
    assert engine.need(Ask(context, parallel, kind, kind)).kv == mib * MIB


#: 8 layers, 4 KV heads of 64.
FIELDS: dict[str, Any] = {
    **{"block_count": 8, "context_length": 32768, "embedding_length": 512, "feed_forward_length": 1408},
    **{"attention.head_count": 8, "attention.head_count_kv": 4},
}
WINDOW = {"attention.sliding_window": 256}
STATE = {"ssm.conv_kernel": 4, "ssm.inner_size": 1024, "ssm.state_size": 64, "ssm.group_count": 1}


@pytest.mark.parametrize(
    ("architecture", "fields", "context", "kib"),
    [
        ("qwen3", {}, 4096, 64 * 1024),
        ("phi3", WINDOW, 4096, 64 * 1024),  # llama.cpp ignores its window
        ("gemma2", WINDOW, 4096, (32 + 6) * 1024),
        ("cohere2", WINDOW, 4096, (16 + 9) * 1024),
        ("olmo2", WINDOW, 4096, (16 + 9) * 1024),
        ("olmo2", {}, 4096, 64 * 1024),
        ("gpt-oss", {"attention.sliding_window": 128}, 4096, (32 + 6) * 1024),
        ("llama4", {}, 16384, (64 + 102) * 1024),
        ("granitehybrid", STATE | {"attention.head_count_kv": [0, 0, 4, 0] * 2}, 4096, 16 * 1024 + 3234),
        ("falcon-h1", STATE | {"block_count": 4}, 4096, 32 * 1024 + 2156),
    ],
)
def test_the_layers_of_other_architectures(
    header_file: Write, architecture: str, fields: dict[str, Any], context: int, kib: int
) -> None:
    """As llama.cpp's log has it for 2 slots of models with these fields."""
    engine = LlamaCpp(gguf_shape(read_model(header_file(architecture, FIELDS | fields))))
    assert engine.need(Ask(context, 2)).kv == kib * 1024


def test_a_file_may_say_which_layers_have_a_window(header_file: Write) -> None:
    def windows(pattern: Any) -> int:
        fields = FIELDS | WINDOW | {"attention.sliding_window_pattern": pattern}
        layers = gguf_shape(read_model(header_file("gemma3", fields))).layers
        return sum(isinstance(layer, Attention) and layer.window == 256 for layer in layers)

    assert (windows(6), windows(4), windows(2)) == (7, 6, 4)
    assert windows([True, False, False, False] * 2) == 2


@pytest.mark.parametrize(
    ("architecture", "shape", "context", "parallel", "mib"),
    [
        ("llama", SMALL, 1024, 1, 14.27),
        ("llama", SMALL | {"inner": 2816}, 1024, 1, 22.52),
        ("llama", SMALL | {"inner": 256}, 1024, 1, 8.02),
        ("llama", SMALL, 4096, 4, 17.27),
        ("llama", SMALL, 32768, 1, 45.27),
        ("llama", SMALL | {"experts": 16}, 1024, 1, 22.52),
        ("gemma3", GEMMA, 4096, 1, 18.28),
        ("deepseek2", LATENT, 4096, 1, 20.01),
        ("deepseek2", LATENT | {"heads": 16}, 1024, 1, 30.01),
        ("mamba", {"layers": 2, "width": 512}, 1024, 4, 15.3),
        ("mamba2", {"layers": 2, "width": 512, "state": 128, "groups": 4}, 1024, 1, 21.06),
        ("jamba", SMALL | {"layers": 8}, 4096, 2, 19.16),
    ],
)
def test_the_compute_buffer_is_near_what_llama_cpp_says(
    model_file: Write, architecture: str, shape: dict[str, Any], context: int, parallel: int, mib: float
) -> None:
    found = gguf_shape(read_model(model_file(architecture, **shape)))
    buffers = LlamaCpp(found).need(Ask(context, parallel)).buffers / MIB
    assert mib * 0.99 <= buffers <= mib * 1.05 + 512 * max(found.inner, 16 * 256) * 2 / MIB


@pytest.mark.parametrize(
    ("architecture", "shape", "context", "mib"),
    [
        ("llama", SMALL, 1024, 25.01),
        ("llama", SMALL, 4096, 79.01),
        ("llama", SMALL | {"heads": 16}, 4096, 142.51),
        ("gemma3", GEMMA, 4096, 82.02),
        ("deepseek2", LATENT, 4096, 88.01),
    ],
)
def test_without_flash_attention_the_scores_are_kept(
    model_file: Write, architecture: str, shape: dict[str, Any], context: int, mib: float
) -> None:
    engine = LlamaCpp(gguf_shape(read_model(model_file(architecture, **shape))), flash_attention=False)
    assert engine.need(Ask(context, 1)).buffers / MIB == pytest.approx(mib, rel=0.05, abs=2.5)


def test_the_shipped_model() -> None:
    shape = gguf_shape(read_model(shipped_model()))
    assert shape.layers == (Attention(8, 4, 32, 32),) * 4
    assert (shape.width, shape.inner, shape.vocabulary, shape.trained_context) == (256, 704, 4096, 1024)
    assert shape.weights.repackable == 0
    assert 0.95 * shipped_model().stat().st_size < shape.weights.total < shipped_model().stat().st_size


def test_weights_that_are_copied(model_file: Write) -> None:
    shape = SMALL | {"inner": 1536, "kind": 2}
    apart = gguf_shape(read_model(model_file("llama", **shape))).weights
    # llama.cpp's log: 1.98 MiB stay mapped, 3.52 MiB are repacked.
    assert (round(apart.mapped / MIB, 2), round(apart.repackable / MIB, 2)) == (1.98, 3.52)
    tied = gguf_shape(read_model(model_file("llama", **shape, tied=True, vocabulary=8192))).weights
    assert (round(tied.mapped / MIB, 2), round(tied.repackable / MIB, 2)) == (3.95, 5.62)


def test_an_unknown_architecture_is_refused(model_file: Write) -> None:
    path = model_file("llama", **SMALL)
    path.write_bytes(path.read_bytes().replace(b"llama", b"lmama"))
    with pytest.raises(UnknownArchitecture, match="'lmama' isn't known"):
        gguf_shape(read_model(path))


@pytest.mark.parametrize("name", ["block_count", "embedding_length", "attention.head_count"])
def test_a_field_that_is_missing_is_named(model_file: Write, name: str) -> None:
    path = model_file("llama", **SMALL)
    path.write_bytes(path.read_bytes().replace(f"llama.{name}".encode(), b"x" * (6 + len(name)), 1))
    with pytest.raises(ModelFileError, match=rf"llama\.{name} is missing"):
        gguf_shape(read_model(path))


# --- Hugging Face folders -------------------------------------------------------------------------------------------

LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
}


def safetensors(path: Path, sizes: dict[str, int]) -> None:
    """A sparse file with such tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, size in sizes.items():
        header[name] = {"dtype": "BF16", "shape": [size // 2], "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    def make(config: dict[str, Any]) -> Path:
        (tmp_path / "config.json").write_text(json.dumps(config))
        safetensors(tmp_path / "model.safetensors", {"a": 1000, "b": 24})
        return tmp_path

    return make


def test_a_folder(folder: Callable[[dict[str, Any]], Path]) -> None:
    shape = hf_shape(folder(LLAMA))
    assert shape.layers == (Attention(32, 8, 128, 128),) * 32
    assert (shape.weights.total, shape.trained_context, shape.number_bytes) == (1024, 131072, 2)
    assert Vllm(shape).need(Ask(8192, 1, "auto", "auto")).kv == 2**30
    assert Vllm(shape).need(Ask(8192, 2, "fp8", "fp8")).kv == 2**30
    assert hf_shape(folder({"model_type": "any", "text_config": LLAMA})) == shape


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({"sliding_window": 4096}, 32),
        ({"sliding_window": None}, 0),
        ({"model_type": "qwen2", "sliding_window": 4096}, 0),
        ({"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": True, "max_window_layers": 28}, 4),
        ({"model_type": "gemma2", "sliding_window": 4096, "head_dim": 256}, 16),
        ({"model_type": "gemma3_text", "sliding_window": 1024, "sliding_window_pattern": 6, "head_dim": 128}, 27),
        (
            {
                "model_type": "gpt_oss",
                "sliding_window": 128,
                "layer_types": ["sliding_attention", "full_attention"] * 16,
                "head_dim": 64,
            },
            16,
        ),
    ],
)
def test_windows(folder: Callable[[dict[str, Any]], Path], changes: dict[str, Any], windows: int) -> None:
    layers = hf_shape(folder(LLAMA | changes)).layers
    assert sum(isinstance(layer, Attention) and layer.window == changes["sliding_window"] for layer in layers) == (
        windows if changes["sliding_window"] else 32
    )


def test_layers_that_are_not_attention(folder: Callable[[dict[str, Any]], Path]) -> None:
    latent = {"model_type": "deepseek_v3", "kv_lora_rank": 512, "qk_rope_head_dim": 64}
    assert hf_shape(folder(LLAMA | latent)).layers == (Latent(32, 512, 64),) * 32
    states = {"model_type": "mamba", "state_size": 16, "conv_kernel": 4, "intermediate_size": 8192}
    assert hf_shape(folder(LLAMA | states)).layers == (Recurrent(3 * 8192, 16 * 8192, 4096 + 7 * 8192),) * 32
    mixed = {"model_type": "jamba", "attn_layer_period": 8, "attn_layer_offset": 4}
    assert [n for n, kept in enumerate(hf_shape(folder(LLAMA | mixed)).layers) if isinstance(kept, Attention)] == [
        *(4, 12, 20, 28)
    ]


def test_experts(folder: Callable[[dict[str, Any]], Path]) -> None:
    experts = {
        "model_type": "qwen3_moe",
        "moe_intermediate_size": 768,
        "num_experts_per_tok": 8,
        "intermediate_size": 1,
    }
    assert hf_shape(folder(LLAMA | experts)).inner == 8 * 768


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (LLAMA | {"model_type": "unheard_of"}, "'unheard_of' isn't known"),
        (LLAMA | {"sliding_window": 8, "layer_types": ["linear_attention"] * 32}, "'linear_attention' isn't known"),
        ({k: v for k, v in LLAMA.items() if k != "hidden_size"}, "`hidden_size` in config.json is missing"),
        (LLAMA | {"num_hidden_layers": "many"}, "`num_hidden_layers` in config.json isn't a whole number"),
    ],
)
def test_what_is_not_known_is_refused(
    folder: Callable[[dict[str, Any]], Path], config: dict[str, Any], says: str
) -> None:
    with pytest.raises(ModelFileError, match=says):
        hf_shape(folder(config))


def test_folders_that_are_damaged(folder: Callable[[dict[str, Any]], Path], tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"config\.json doesn't exist"):
        hf_shape(tmp_path)
    where = folder(LLAMA)
    weights = where / "model.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[:-1], whole[:20], b"", b"\xff" * 100, whole[:8] + b"[" + whole[9:]):
        weights.write_bytes(damaged)
        with pytest.raises(ModelFileError, match="cut short or damaged"):
            hf_shape(where)
    weights.write_bytes(whole)
    index = where / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": weights.name, "b": "gone.safetensors"}}))
    with pytest.raises(ModelFileError, match=r"lacks gone\.safetensors"):
        hf_shape(where)
    index.unlink()
    weights.unlink()
    with pytest.raises(ModelFileError, match=r"no \*\.safetensors files"):
        hf_shape(where)
    (where / "config.json").write_text("[]")
    with pytest.raises(ModelFileError, match="isn't a JSON object"):
        hf_shape(where)
