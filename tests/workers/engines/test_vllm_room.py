"""Models that can't fit the GPUs are refused before vLLM is started; those of which it isn't sure are left to vLLM."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from fabric.contracts.catalog import Deployment
from fabric.contracts.errors import ConfigError
from workers.engines import vllm
from workers.engines.api_options import options_of
from workers.engines.vllm import VllmEngine
from workers.engines.vllm_options import VllmOptions, argument
from workers.engines.vllm_room import check_room

GIB = 2**30
WEIGHTS = 15 * GIB
#: 32 layers of 8 KV heads of 128 numbers, keys and values, two bytes each: an eighth of a MiB a token.
TOKEN = 32 * 8 * 128 * 2 * 2
SHAPE = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder whose weights take no room on the disk."""
    folder = tmp_path / "llama"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SHAPE))
    header = json.dumps({"w": {"dtype": "U8", "shape": [WEIGHTS], "data_offsets": [0, WEIGHTS]}}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        os.truncate(file.fileno(), 8 + len(header) + WEIGHTS)
    return folder


def check(model: Path | str, gpu_gib: float | None, context: int = 8192, args: Any = ()) -> None:
    place = Deployment(
        engine="vllm", tier="gpu", name="big", model=str(model), context_window=context, options={"args": args}
    )
    check_room(place, options_of(place, VllmOptions), None if gpu_gib is None else int(gpu_gib * GIB))


def test_what_fits_is_started(model: Path) -> None:
    check(model, 24)
    check(model, 24, context=49_152)  # 15 + 6 GiB of 21.6


def test_too_long_a_window_is_refused_with_one_that_fits(model: Path) -> None:
    with pytest.raises(ConfigError, match=r"need 31\.0 GiB; vLLM may take 21\.6 GiB of 1 GPU") as caught:
        check(model, 24, context=131_072)
    window = int(str(caught.value).partition("`context_window: ")[2].partition("`")[0])
    check(model, 24, context=window)
    with pytest.raises(ConfigError):
        check(model, 24, context=window + 64)
    assert window * TOKEN <= 0.9 * 24 * GIB - WEIGHTS


def test_too_many_weights_are_refused_whatever_the_window(model: Path) -> None:
    with pytest.raises(ConfigError, match=r"tensor-parallel-size.* or a model with fewer bits") as caught:
        check(model, 16)
    assert "context_window" not in str(caught.value)


@pytest.mark.parametrize(
    "args",
    [
        {"tensor-parallel-size": 2},
        {"pipeline_parallel_size": 2},
        ["--tensor-parallel-size", "2"],
        ["--tensor-parallel-size=2"],
        {"max-model-len": 4096, "gpu-memory-utilization": 0.98},
        # What weights or cache take then isn't known here.
        {"quantization": "fp8"},
        {"cpu-offload-gb": 8},
        ["-tp", "2"],
        {"max-model-len": "auto"},
    ],
)
def test_arguments_count(model: Path, args: Any) -> None:
    check(model, 16.2, args=args)
    with pytest.raises(ConfigError):
        check(model, 16.2)


def test_what_cannot_be_known_is_left_to_vllm(model: Path) -> None:
    check(model, None)  # no GPU that could be asked
    check("org/name", 1)
    (model / "config.json").write_text(json.dumps({**SHAPE, "model_type": "of-tomorrow"}))
    check(model, 1)


async def test_it_is_looked_at_before_vllm_is_started(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "gpu_memory", lambda: 8 * GIB)
    values = {"engine": "vllm", "tier": "gpu", "name": "big", "model": str(model)}
    engine = VllmEngine(Deployment(**values, options={"command": ["/nowhere/vllm"]}))
    with pytest.raises(ConfigError, match=r"vLLM may take 7\.2 GiB"):
        await engine.start()


@pytest.mark.parametrize(
    ("args", "value"),
    [
        ((), None),
        (("--seed", "3"), None),
        (("--max-model-len", "5", "--max-model-len=6"), "6"),
        (("--max_model_len", "5"), "5"),
        ({"max_model_len": 5}, "5"),
        ({"--max-model-len": "auto"}, "auto"),
    ],
)
def test_an_arguments_value(args: Any, value: str | None) -> None:
    assert argument(args, "max-model-len") == value
