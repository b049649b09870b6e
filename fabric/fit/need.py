"""What is asked of a model, and what that takes. Sizes in bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Ask:
    """``context``: tokens of prompt and answer of one request. ``parallel``: requests side by side.
    ``key_type`` and ``value_type``: how the KV cache writes numbers."""

    context: int
    parallel: int
    key_type: str = "f16"
    value_type: str = "f16"


@dataclass(frozen=True, slots=True)
class Need:
    """The parts of what a model takes. ``kv``: keys, values and states of all requests. ``checkpoints``: copies
    of them that are kept for prompts that begin alike. ``buffers``: what is computed with. ``copies``: weights
    that are in memory a second time. ``runtime``: the process itself."""

    weights: int
    kv: int
    checkpoints: int
    buffers: int
    copies: int
    runtime: int

    @property
    def overhead(self) -> int:
        """All but weights and KV."""
        return self.checkpoints + self.buffers + self.copies + self.runtime

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.overhead


class Engine(Protocol):
    """How one engine spends memory on one model. ``need`` never falls when context or parallel rise."""

    @property
    def most_parallel(self) -> int:
        """Requests side by side that the engine can be set to."""

    @property
    def smaller_types(self) -> tuple[str, ...]:
        """KV types that take less room than the usual one, largest first."""

    def need(self, ask: Ask) -> Need: ...


def gib(count: int) -> str:
    """Bytes, for people: in GiB, without the unit."""
    return f"{count / 2**30:.1f}"


def rounded_up(count: int, step: int) -> int:
    return -(-count // step) * step
