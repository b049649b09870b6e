"""What vLLM takes for a model in the Hugging Face format.

Weights and KV cache follow vLLM's own arithmetic (``vllm/v1/kv_cache_interface.py``): blocks of 16 tokens,
windows that also hold the tokens being computed, latent vectors, states in the model's numbers. What it
computes with is found by vLLM with a trial run; the figures here are a careful estimate, not a measurement.
"""

from __future__ import annotations

from dataclasses import dataclass

from fabric.contracts.errors import ConfigError
from fabric.fit.need import Ask, Need, rounded_up
from fabric.fit.shape import Attention, Latent, Layer, Recurrent, Shape

_BLOCK_TOKENS = 16
#: The device's context, kernels and captured graphs. An assumption: 0.5 to 1.5 GiB are reported.
_RUNTIME = 2**30
#: ``max_num_batched_tokens`` of ``vllm serve`` on most devices.
_BATCH_TOKENS = 2048
#: No engine limit but the memory; a deployment can't have more slots.
_MOST_PARALLEL = 65_536
_NUMBER_BYTES = {"auto": None, "f32": 4, "f16": 2, "bf16": 2, "fp8": 1}
_F32 = 4


@dataclass(frozen=True, slots=True)
class Vllm:
    """``batch``: most tokens computed in one go."""

    shape: Shape
    batch: int = _BATCH_TOKENS

    most_parallel = _MOST_PARALLEL
    smaller_types = ("fp8",)

    def need(self, ask: Ask) -> Need:
        """
        Raises:
            ConfigError: vLLM's cache can't be of this type.
        """
        shape, numbers = self.shape, self.shape.number_bytes
        if ask.key_type not in _NUMBER_BYTES or ask.value_type != ask.key_type:
            raise ConfigError(f"vLLM has no KV cache of type {ask.key_type!r}; it has {', '.join(_NUMBER_BYTES)}.")
        each = _NUMBER_BYTES[ask.key_type] or numbers
        widest = max([2 * shape.inner, *(_activations(layer) for layer in shape.layers)], default=0)
        tokens = min(self.batch, max(ask.context * ask.parallel, 1))
        return Need(
            weights=shape.weights.total,
            kv=ask.parallel * sum(self._kept(layer, ask, each) for layer in shape.layers),
            checkpoints=0,
            buffers=tokens * (4 * shape.width + widest) * numbers + ask.parallel * shape.vocabulary * _F32,
            copies=0,
            runtime=_RUNTIME,
        )

    def _kept(self, layer: Layer, ask: Ask, each: int) -> int:
        if isinstance(layer, Recurrent):
            return (layer.convolution + layer.state) * self.shape.number_bytes
        if isinstance(layer, Latent):
            return rounded_up(ask.context, _BLOCK_TOKENS) * (layer.rank + layer.rope) * each
        tokens = rounded_up(ask.context, _BLOCK_TOKENS)
        if layer.window is not None and layer.window - 1 + self.batch < ask.context:
            # SlidingWindowSpec: one block more, because a window may begin in the middle of one.
            tokens = min(tokens, rounded_up(layer.window - 1 + self.batch, _BLOCK_TOKENS) + _BLOCK_TOKENS)
        return tokens * layer.kv_heads * (layer.key + layer.value) * each


def _activations(layer: Layer) -> int:
    if isinstance(layer, Recurrent):
        return layer.activations
    if isinstance(layer, Latent):
        return 2 * layer.heads * (layer.rank + layer.rope)
    assert isinstance(layer, Attention)
    return 2 * layer.heads * layer.key + layer.kv_heads * (layer.key + layer.value)
