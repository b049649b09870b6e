"""What llama.cpp's server takes for a model, as the CPU worker runs it.

Weights, caches and states are exact: the same numbers as in llama.cpp's log. The size of its compute buffer
comes from the graph allocator, which nobody can call without the model; ``_buffers`` has formulas for the
widest step of each kind of layer, fitted to that log. Constants of the process are measured (see
``tests/fit/test_calibration.py``, which holds all of it to 10 % of the peak resident memory).
"""

from __future__ import annotations

from dataclasses import dataclass

from fabric.contracts.errors import ConfigError
from fabric.fit.gguf import TENSOR_TYPES
from fabric.fit.need import Ask, Need, rounded_up
from fabric.fit.shape import Attention, Latent, Recurrent, Shape

#: A cache has room for a multiple of this many tokens (``GGML_PAD(…, 256)`` in llama-context.cpp and
#: llama-kv-cache-iswa.cpp).
_CACHE_STEP = 256
#: ``LLAMA_MAX_SEQ``.
_MOST_SEQUENCES = 256
_F16, _F32 = 2, 4
#: The process without a model: Python, the library, the HTTP server. Measured on x86-64: 31 to 32 MiB.
_RUNTIME = 32 * 2**20
#: A token's text and score, and a pair of a BPE vocabulary, in llama.cpp's tables. Measured.
_TOKEN_BYTES, _MERGE_BYTES = 224, 228
CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """``batch``: tokens computed in one go. ``mmap``: the file is mapped, not read. ``mlock``: it stays in
    memory. ``repack``: matrices are copied into an order that suits the CPU. ``checkpoints``: copies of what a
    request has left in sliding windows and states, kept for each slot."""

    shape: Shape
    batch: int = 512
    mmap: bool = True
    mlock: bool = False
    repack: bool = True
    flash_attention: bool = True
    checkpoints: int = 2

    most_parallel = _MOST_SEQUENCES
    smaller_types = ("q8_0", "q4_0")

    def need(self, ask: Ask) -> Need:
        """
        Raises:
            ConfigError: llama.cpp's cache can't be of this type.
        """
        return Need(
            weights=self.shape.weights.total,
            kv=sum(layers_kv(self.shape, ask, self.batch)),
            checkpoints=self.checkpoints * ask.parallel * _forgetful(self.shape, ask),
            buffers=self._buffers(ask),
            copies=self._copies(),
            runtime=_RUNTIME + self.shape.vocabulary * _TOKEN_BYTES + self.shape.merges * _MERGE_BYTES,
        )

    @property
    def droppable(self) -> int:
        """Bytes of the mapped file, which the kernel can drop from memory and read again."""
        if not self.mmap or self.mlock:
            return 0
        weights = self.shape.weights
        return min(weights.mapped, weights.total) if self.repack and weights.repackable else weights.total

    def _copies(self) -> int:
        """Repacked matrices live beside the mapped file, of which llama.cpp unmaps only the two ends that
        hold nothing else (``unmap_fragment`` in llama-mmap.cpp)."""
        weights = self.shape.weights
        if not (self.repack and self.mmap and weights.repackable):
            return 0
        return max(0, weights.repackable + weights.mapped - weights.total)

    def _buffers(self, ask: Ask) -> int:
        """Compute buffer, output buffer and the rows that a matrix product converts.

        With n tokens at once and numbers of 4 bytes, the widest moment of a layer holds
        attention: 3 widths, 3 queries, a key and a value; latent attention: 3 widths and, per head, two
        compressed queries, a compressed answer and a rotary query; a state: see ``Recurrent.activations``,
        and one state of each request; feed-forward: 5 widths and 3 inner widths. Masks: a number for each token
        and each place in a cache, of 2 bytes with flash attention, else of 4. Without flash attention, the
        scores of every head for every token and place come on top.
        """
        shape, tokens = self.shape, self.batch
        moments = [
            tokens * (5 * shape.width + 3 * shape.inner) * _F32,
            ask.parallel * (shape.vocabulary + shape.width) * _F32,
        ]
        widest = max(shape.width, shape.inner)
        masks: dict[int | None, int] = {}
        for layer in set(shape.layers):
            if isinstance(layer, Recurrent):
                states = ask.parallel * (layer.convolution + layer.state)
                moments.append((tokens * layer.activations + states) * _F32)
                continue
            window = layer.window if isinstance(layer, Attention) else None
            masks[window] = cells = _cells(ask, window, tokens)
            if isinstance(layer, Latent):
                width = layer.heads * (3 * layer.rank + layer.rope)
                widest = max(widest, layer.heads * layer.rank)
            else:
                width = 3 * layer.heads * max(layer.key, layer.value) + layer.kv_heads * (layer.key + layer.value)
                widest = max(widest, layer.heads * layer.key)
            scores = 0 if self.flash_attention else layer.heads * cells
            moments.append(tokens * (3 * shape.width + width + scores) * _F32)
        mask_bytes = tokens * sum(masks.values()) * (_F16 if self.flash_attention else _F32)
        outputs = ask.parallel * shape.vocabulary * _F32
        return max(moments) + mask_bytes + outputs + tokens * widest * _F16


def layers_kv(shape: Shape, ask: Ask, batch: int) -> list[int]:
    """Bytes that each entry of ``shape.layers`` keeps for all requests together.

    Attention: cells x KV heads x (key + value), llama-kv-cache.cpp. Latent: cells x (rank + rope), keys only.
    States: 32-bit numbers for each request, llama-memory-recurrent.cpp.
    """
    return [ask.parallel * _kept(layer, ask, batch) for layer in shape.layers]


def _kept(layer: Attention | Latent | Recurrent, ask: Ask, batch: int) -> int:
    if isinstance(layer, Recurrent):
        return (layer.convolution + layer.state) * _F32
    window = layer.window if isinstance(layer, Attention) else None
    return _cells(ask, window, batch) * _token(layer, ask)


def _token(layer: Attention | Latent, ask: Ask) -> int:
    if isinstance(layer, Latent):
        return _row(layer.rank + layer.rope, ask.key_type)
    return _row(layer.kv_heads * layer.key, ask.key_type) + _row(layer.kv_heads * layer.value, ask.value_type)


def _cells(ask: Ask, window: int | None, batch: int) -> int:
    """Tokens that a cache has room for. A window's must also hold the tokens that are being computed."""
    whole = rounded_up(ask.context, _CACHE_STEP)
    return whole if window is None else rounded_up(min(whole, window + batch), _CACHE_STEP)


def _forgetful(shape: Shape, ask: Ask) -> int:
    """Bytes of one request's windows and states: what can't be cut back to an earlier token, and is copied."""
    size = 0
    for layer in shape.layers:
        if isinstance(layer, Recurrent):
            size += (layer.convolution + layer.state) * _F32
        elif isinstance(layer, Attention) and layer.window is not None:
            size += min(ask.context, layer.window) * _token(layer, ask)
    return size


def _row(count: int, kind: str) -> int:
    """``ggml_row_size``.

    Raises:
        ConfigError: no such type, or the row isn't made of whole blocks.
    """
    if kind not in CACHE_TYPES:
        raise ConfigError(f"llama.cpp has no KV cache of type {kind!r}; it has {', '.join(CACHE_TYPES)}.")
    block, size = _BLOCKS[kind]
    if count % block:
        raise ConfigError(
            f"This model's KV cache can't be {kind}: a row has {count} numbers, not a multiple of {block}."
        )
    return count // block * size


_BLOCKS = {name.lower(): (block, size) for name, block, size in TENSOR_TYPES.values()}
