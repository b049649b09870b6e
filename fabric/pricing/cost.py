"""Costs in US dollars. Pure."""

from __future__ import annotations

from fabric.contracts.catalog import LongContext, Price


def token_usd(
    price: Price, input_tokens: float, output_tokens: float, cached_input_tokens: float = 0, *, batch: bool = False
) -> float:
    """``cached_input_tokens`` are a part of ``input_tokens``, reasoning is a part of ``output_tokens``: neither is
    added to it. ``batch``: through the provider's batch API, at its discount."""
    rates: Price | LongContext = price
    if price.long_context:
        above = [step for step in price.long_context if input_tokens > step.above_input_tokens]
        if above:
            rates = max(above, key=_threshold)
    uncached = rates.input_per_million
    usd = input_tokens * uncached + output_tokens * rates.output_per_million
    if cached_input_tokens and (cached := rates.cached_input_per_million) is not None:
        usd += cached_input_tokens * (cached - uncached)
    if batch:
        usd *= 1 - price.batch_discount
    return usd / 1e6


def _threshold(step: LongContext) -> int:
    return step.above_input_tokens


def machine_usd(price: Price, engine_s: float, slots: int) -> float:
    """What ``engine_s`` seconds in one of a worker's ``slots`` cost of the worker's hours."""
    if not price.machine_usd_per_hour:
        return 0.0
    return engine_s / max(1, slots) * price.machine_usd_per_hour / 3600
