"""Whether it fits, how far it could go, and what to change. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from fabric.contracts.errors import ConfigError
from fabric.fit.need import Ask, Engine, Need

#: The longest context that is looked for where the model doesn't name one, in tokens.
_LONGEST = 2**20


@dataclass(frozen=True, slots=True)
class Estimate:
    """``max_context``: the longest context that fits with this many requests side by side, not longer than the
    model was trained for; ``max_parallel``: the most requests that fit with this context. 0: not one."""

    ask: Ask
    need: Need
    have: int
    kv_per_token: int
    max_context: int
    max_parallel: int
    advice: str

    @property
    def fits(self) -> bool:
        return self.need.total <= self.have

    def asdict(self) -> dict[str, Any]:
        """Names and units of the public contract; sizes in bytes."""
        return {
            "fits": self.fits,
            "need_bytes": self.need.total,
            "have_bytes": self.have,
            "weights_bytes": self.need.weights,
            "kv_bytes": self.need.kv,
            "overhead_bytes": self.need.overhead,
            "max_context": self.max_context,
            "max_parallel": self.max_parallel,
            "advice": self.advice,
            "context": self.ask.context,
            "parallel": self.ask.parallel,
            "kv_type": self.ask.key_type,
            "kv_bytes_per_token": self.kv_per_token,
            "checkpoint_bytes": self.need.checkpoints,
            "buffer_bytes": self.need.buffers,
            "copied_weights_bytes": self.need.copies,
            "runtime_bytes": self.need.runtime,
        }


def estimate(engine: Engine, ask: Ask, have: int, trained: int | None = None) -> Estimate:
    """``have``: bytes that there are. ``trained``: tokens that the model was trained for.

    Raises:
        ConfigError: the engine can't do what is asked, whatever the memory.
    """
    if ask.parallel > engine.most_parallel:
        raise ConfigError(f"The engine runs at most {engine.most_parallel} requests side by side, not {ask.parallel}.")
    need = engine.need(ask)
    context = longest(engine, ask, have, trained)
    parallel = most_parallel(engine, ask, have)
    return Estimate(
        ask,
        need,
        have,
        kv_per_token(engine, ask),
        context,
        parallel,
        _advice(engine, ask, need, have, context, parallel, trained),
    )


def longest(engine: Engine, ask: Ask, have: int, trained: int | None = None) -> int:
    """The longest context that fits in ``have`` bytes, in tokens; 0 if none does."""
    return _largest(trained or _LONGEST, lambda tokens: engine.need(replace(ask, context=tokens)).total <= have)


def most_parallel(engine: Engine, ask: Ask, have: int) -> int:
    """The most requests side by side that fit in ``have`` bytes; 0 if not one does."""
    return _largest(engine.most_parallel, lambda count: engine.need(replace(ask, parallel=count)).total <= have)


def kv_per_token(engine: Engine, ask: Ask) -> int:
    """Bytes that one more token takes of a long context: windows and states don't grow any more."""
    far = 2**20
    longer = [engine.need(replace(ask, context=far * times, parallel=1)).kv for times in (1, 2)]
    return (longer[1] - longer[0]) // far


def _largest(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest number from 1 to ``limit`` that fits, where every smaller one does too; else 0."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low


def _advice(engine: Engine, ask: Ask, need: Need, have: int, context: int, parallel: int, trained: int | None) -> str:
    if need.total > have:
        return _what_to_change(engine, ask, need, have, context, parallel)
    if trained is not None and ask.context > trained:
        return f"It fits, but the model was trained for {trained} tokens; longer ones are refused: --context {trained}."
    many = "one request" if ask.parallel == 1 else f"{ask.parallel} requests"
    return f"It fits, up to --context {context} with {many}, or --parallel {parallel} with this context."


def _what_to_change(engine: Engine, ask: Ask, need: Need, have: int, context: int, parallel: int) -> str:
    changes = []
    if context:
        changes.append(f"--context {context}")
    if parallel:
        changes.append(f"--parallel {parallel}")
    for kind in engine.smaller_types:
        smaller = replace(ask, key_type=kind, value_type=kind)
        try:
            if engine.need(smaller).total <= have:
                changes.append(f"--kv-type {kind}")
                break
        except ConfigError:  # this model's rows can't be written so
            continue
    if changes:
        return f"It doesn't fit; any of these alone makes it fit: {', '.join(changes)}."
    least = engine.need(replace(ask, context=1, parallel=1)).total
    if least > have:
        return (
            f"It doesn't fit with any setting: weights and overhead need {_gib(least)} GiB, there are {_gib(have)}. "
            "Take a smaller model, one with fewer bits per weight, or more memory."
        )
    alone = longest(engine, replace(ask, parallel=1), have)
    return f"It doesn't fit; --parallel 1 together with --context {min(alone, ask.context)} does."


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f}"
