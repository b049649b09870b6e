"""``fabric fit``."""

from __future__ import annotations

from pathlib import Path

import click

from fabric.cli.output import json_option, print_json, print_table
from fabric.fit.estimate import Estimate, estimate
from fabric.fit.gguf import read_model
from fabric.fit.gguf_shape import gguf_shape
from fabric.fit.hf_shape import hf_shape
from fabric.fit.llamacpp import CACHE_TYPES, LlamaCpp
from fabric.fit.memory import available_memory, gpu_memory
from fabric.fit.need import Ask, Engine
from fabric.fit.shape import Shape
from fabric.fit.vllm import Vllm

#: What a deployment gets that doesn't say (``context_window``).
_CONTEXT = 4096
#: ``--gpu-memory-utilization`` of ``vllm serve``.
_VLLM_SHARE = 0.9
_GIB = 2**30


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--context", type=click.IntRange(1, 2**30), help="Tokens of one request. [default: 4096, or the model's]")
@click.option("--parallel", type=click.IntRange(1), default=1, show_default=True, help="Requests side by side.")
@click.option(
    "--kv-type",
    type=click.Choice([*CACHE_TYPES, "fp8"]),
    help="Number format of the KV cache: fp8 for vLLM only. [default: f16, or the model's]",
)
@click.option(
    "--gpu-memory",
    type=click.FloatRange(0, min_open=True),
    help="A GPU's memory in GiB, instead of what is found here.",
)
@json_option
def fit(
    model: Path, context: int | None, parallel: int, kv_type: str | None, gpu_memory: float | None, as_json: bool
) -> None:
    """Say whether a model fits in memory here, what each part of it costs, and what to change.

    MODEL is a GGUF file, for llama.cpp, or a folder in the Hugging Face format (config.json and
    safetensors), for vLLM. Only headers are read.
    """
    engine, kind, shape = _engine(model, on_gpu=gpu_memory is not None)
    wanted = context or min(_CONTEXT, shape.trained_context or _CONTEXT)
    numbers = kv_type or kind
    have, where = _memory(isinstance(engine, Vllm), gpu_memory)
    found = estimate(engine, Ask(wanted, parallel, numbers, numbers), have, shape.trained_context)
    if as_json:
        print_json({**found.asdict(), "architecture": shape.architecture, "memory": where})
    else:
        _print(model, found, shape, where)


def _engine(model: Path, *, on_gpu: bool) -> tuple[Engine, str, Shape]:
    """With the KV type that the engine uses by itself."""
    if model.is_dir():
        shape = hf_shape(model)
        return Vllm(shape), "auto", shape
    shape = gguf_shape(read_model(model))
    return LlamaCpp(shape, repack=not on_gpu), "f16", shape


def _memory(is_vllm: bool, given_gib: float | None) -> tuple[int, str]:
    """Bytes that the engine may use, and whose they are. vLLM leaves a tenth of a GPU to others."""
    share = _VLLM_SHARE if is_vllm else 1.0
    if given_gib is not None:
        return int(given_gib * _GIB * share), "GPU, as given"
    if is_vllm and (found := gpu_memory()) is not None:
        return int(found * share), "GPU"
    return available_memory(), "this machine's"


def _print(model: Path, found: Estimate, shape: Shape, where: str) -> None:
    need, ask = found.need, found.ask
    click.echo(f"{model}: {shape.architecture}, {len(shape.layers)} layers, {ask.parallel} x {ask.context} tokens")
    parts = [
        ("weights", need.weights),
        (f"KV cache ({ask.key_type}, {found.kv_per_token} bytes per token)", need.kv),
        ("checkpoints of windows and states", need.checkpoints),
        ("compute buffers", need.buffers),
        ("weights in memory twice", need.copies),
        ("runtime", need.runtime),
        ("all", need.total),
        (f"memory ({where})", found.have),
    ]
    print_table(("PART", "MIB"), [(name, f"{size / 2**20:.1f}") for name, size in parts if size])
    click.echo(found.advice)
