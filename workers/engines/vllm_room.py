"""Whether a model can fit the GPUs at all, before minutes go into loading it. Pure, but for the headers that it reads.

Only what is sure is refused: weights and the KV cache of one request that are more than vLLM may take. What it computes
with it finds out by itself, and how many requests fit beside each other.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fabric.contracts.catalog import Deployment
from fabric.contracts.errors import ConfigError, ModelFileError
from fabric.fit.estimate import longest
from fabric.fit.hf_shape import hf_shape
from fabric.fit.need import Ask, Need, gib
from fabric.fit.vllm import Vllm
from workers.engines.vllm_options import VllmOptions, argument, is_plain

#: They change what weights or cache take: then vLLM finds out alone.
_CHANGES = ("quantization", "cpu-offload-gb", "kv-cache-dtype", "dtype", "load-format", "hf-overrides", "config")
#: ``--gpu-memory-utilization`` of ``vllm serve``.
_SHARE = 0.9


def check_room(deployment: Deployment, options: VllmOptions, gpu_bytes: int | None) -> None:
    """``gpu_bytes``: of one GPU; ``None`` where there is none that could be asked.

    Raises:
        ConfigError: it can't fit; names the numbers and the settings to change.
    """
    folder, args = Path(deployment.model), options.args
    if gpu_bytes is None or not is_plain(args) or any(argument(args, name) is not None for name in _CHANGES):
        return
    if not (folder / "config.json").is_file():
        return  # a name at Hugging Face: what it is isn't known before it is here
    try:
        gpus = int(argument(args, "tensor-parallel-size") or 1) * int(argument(args, "pipeline-parallel-size") or 1)
        share = float(argument(args, "gpu-memory-utilization") or _SHARE)
        context = int(argument(args, "max-model-len") or deployment.context_window)
        engine = _Kept(hf_shape(folder))
    except (ValueError, ModelFileError):
        return  # vLLM may know it, or says itself what is wrong
    have = int(gpus * share * gpu_bytes)
    ask = Ask(max(1, context), 1, "auto", "auto")
    need = engine.need(ask)
    if need.total <= have:
        return
    changes = ["more GPUs (`options.args.tensor-parallel-size`)", "a model with fewer bits per weight"]
    if shorter := longest(engine, ask, have):
        changes.insert(0, f"`context_window: {shorter}`")
    raise ConfigError(
        f"Deployment {deployment.name!r}: the weights of {deployment.model} and the KV cache of one request of "
        f"{context} tokens need {gib(need.total)} GiB; vLLM may take {gib(have)} GiB of {gpus} GPU(s). Set or take "
        f"{', '.join(changes[:-1])} or {changes[-1]}."
    )


class _Kept(Vllm):
    """What stays in memory, whatever is computed."""

    def need(self, ask: Ask) -> Need:
        return replace(super().need(ask), buffers=0, runtime=0)
