"""Whether a deployment has room in memory, and for how many slots. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from fabric.contracts.catalog import Deployment
from fabric.contracts.errors import ConfigError, ModelFileError
from fabric.fit.estimate import longest, most_parallel
from fabric.fit.gguf import Header
from fabric.fit.gguf_shape import gguf_shape
from fabric.fit.llamacpp import LlamaCpp
from fabric.fit.need import Ask, gib
from fabric.fit.shape import Shape

#: The share of the memory, beyond the weights, that default slots may take for their contexts.
_CONTEXT_SHARE = 0.6


def known_shape(header: Header) -> Shape | None:
    """``None`` where the need can't be told: llama.cpp may know the model, or says itself what is wrong with it."""
    try:
        return gguf_shape(header)
    except ModelFileError:
        return None


def slots_with_room(writer: LlamaCpp, ask: Ask, wanted: int, memory: int) -> int:
    """``wanted``, or fewer where the contexts of so many would take too much of ``memory`` (bytes); at least 1."""
    weights = writer.shape.weights.total
    return max(1, min(wanted, most_parallel(writer, ask, weights + int(_CONTEXT_SHARE * (memory - weights)))))


@dataclass(frozen=True, slots=True)
class Room:
    """The servers of a deployment and the memory for them, in bytes. ``ask``: of the one that writes."""

    writer: LlamaCpp | None
    embedder: LlamaCpp | None
    ask: Ask
    memory: int

    @property
    def need(self) -> int:
        """Bytes that the deployment takes when it works at its best: with all of its weights in memory, once."""
        if self.writer is None:
            return self._embedding + (self.embedder.droppable if self.embedder else 0)
        return self.writer.need(self.ask).total + self._embedding

    def check(self, deployment: Deployment) -> None:
        """Refuses what can't fit, before the kernel ends a process of its choice.

        Weights in a mapped file don't count: the kernel can drop and read them again, if slowly.

        Raises:
            ConfigError: names the settings to change.
        """
        embedding = self._embedding
        writing = self.writer.need(self.ask).total - self.writer.droppable if self.writer else 0
        if writing + embedding <= self.memory:
            return
        raise ConfigError(
            f"Deployment {deployment.name!r}: {deployment.model} with {self.ask.parallel} slots of {self.ask.context} "
            f"tokens needs {gib(writing + embedding)} GiB, {gib(self.memory)} GiB are free; "
            f"{self._advice(embedding)}."
        )

    @property
    def _embedding(self) -> int:
        if self.embedder is None:
            return 0
        one = Ask(self.ask.context, 1, self.ask.key_type, self.ask.value_type)
        return self.embedder.need(one).total - self.embedder.droppable

    def _advice(self, embedding: int) -> str:
        changes = []
        if self.writer is not None:
            have = self.memory - embedding + self.writer.droppable
            if slots := most_parallel(self.writer, self.ask, have):
                changes.append(f"`slots: {slots}`")
            # The embedder's own context shrinks with it, so that this is on the safe side.
            if context := longest(self.writer, self.ask, have):
                changes.append(f"`context_window: {context}`")
        changes.append("a smaller `options.cache_type_k` and `cache_type_v`" if changes else "a smaller model")
        return f"set {', '.join(changes[:-1])} or {changes[-1]}" if len(changes) > 1 else f"take {changes[0]}"
