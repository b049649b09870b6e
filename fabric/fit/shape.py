"""What decides a model's need for memory: its weights, and what each layer keeps of the tokens it has read."""

from __future__ import annotations

from dataclasses import dataclass

from fabric.contracts.errors import ModelFileError


class UnknownArchitecture(ModelFileError):
    """We don't know what this model's layers keep, and don't guess."""

    code = "unknown_architecture"


@dataclass(frozen=True, slots=True)
class Attention:
    """Keeps a key and a value for each of ``kv_heads`` and each token; with a ``window``, of the last
    ``window`` tokens only. ``key`` and ``value`` are numbers per head. Grouped-query attention is
    ``kv_heads < heads``."""

    heads: int
    kv_heads: int
    key: int
    value: int
    window: int | None = None


@dataclass(frozen=True, slots=True)
class Latent:
    """Keeps one compressed vector of ``rank`` numbers and a rotary key of ``rope`` numbers for each token,
    whatever the number of heads (multi-head latent attention, DeepSeek-V2, arXiv 2405.04434, 2.1)."""

    heads: int
    rank: int
    rope: int


@dataclass(frozen=True, slots=True)
class Recurrent:
    """Keeps a state of fixed size, however long the text: the last inputs of a convolution and the state
    proper, both as counts of numbers. ``activations``: numbers that it computes with for one token."""

    convolution: int
    state: int
    activations: int


Layer = Attention | Latent | Recurrent


@dataclass(frozen=True, slots=True)
class Weights:
    """Sizes of the tensors in bytes. ``repackable``: those that llama.cpp copies into another order on
    this kind of CPU. ``mapped``: what stays of the mapped file when they are copied."""

    total: int
    repackable: int = 0
    mapped: int = 0


@dataclass(frozen=True, slots=True)
class Shape:
    """``layers`` may hold two entries for a layer that has both attention and a state, and none for a layer
    that keeps nothing. ``inner``: numbers between the two halves of the widest feed-forward step, of all
    experts that one token visits together. ``trained_context``: in tokens. ``number_bytes``: of what
    the model computes with, where the file says so."""

    architecture: str
    layers: tuple[Layer, ...]
    width: int
    inner: int
    vocabulary: int
    weights: Weights
    trained_context: int | None = None
    merges: int = 0
    number_bytes: int = 2
