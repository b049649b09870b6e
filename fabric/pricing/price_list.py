"""Hosted models' list prices, from the snapshot that the package ``genai-prices`` ships: nothing is downloaded.

The package is imported only when a price is asked for: it takes a third of a second.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from fabric.contracts.catalog import LongContext, Price

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice, Provider

_PACKAGE = "genai-prices"


def list_price(
    model: str, *, provider: str | None = None, base_url: str | None = None, at: datetime | None = None
) -> Price | None:
    """``None``: the list doesn't know the provider or its model.

    Of prices that differ by the time of day it is the one outside of the discount: never too low.
    """
    from genai_prices.data_snapshot import DataSnapshot
    from genai_prices.data_snapshot import _bundled_snapshot as bundled  # never what somebody has downloaded since

    snapshot: DataSnapshot = bundled()
    try:
        owner, info = snapshot.find_provider_model(model, None, provider, base_url)
    except LookupError:
        return None
    if owner.api_pattern and base_url is not None and not re.match(owner.api_pattern, base_url):
        return None
    return _price(owner, info, at or datetime.now(UTC))


def list_version() -> str:
    return f"{_PACKAGE} {version(_PACKAGE)}"


def _price(provider: Provider, info: ModelInfo, at: datetime) -> Price | None:
    standard = _standard(info, at)
    rates = {name: getattr(standard, name, None) for name in ("input_mtok", "output_mtok", "cache_read_mtok")}
    if rates["input_mtok"] is None and rates["output_mtok"] is None:
        return None
    thresholds = sorted({step.start for rate in rates.values() for step in getattr(rate, "tiers", ())})
    return Price(
        input_per_million=_at(rates["input_mtok"], 0) or 0.0,
        output_per_million=_at(rates["output_mtok"], 0) or 0.0,
        cached_input_per_million=_at(rates["cache_read_mtok"], 0),
        batch_discount=_batch_discount(provider, info, standard, at),
        long_context=tuple(
            LongContext(
                above_input_tokens=start,
                input_per_million=_at(rates["input_mtok"], start) or 0.0,
                output_per_million=_at(rates["output_mtok"], start) or 0.0,
                cached_input_per_million=_at(rates["cache_read_mtok"], start),
            )
            for start in thresholds
        ),
        version=list_version(),
    )


def _standard(info: ModelInfo, at: datetime) -> ModelPrice:
    """Of the prices that hold on that day, the dearest hour's."""
    from genai_prices.types import ModelPrice, TimeOfDateConstraint

    if isinstance(info.prices, ModelPrice):
        return info.prices
    of_hours: list[ModelPrice] = []
    for conditional in reversed(info.prices):  # the last one that holds counts
        constraint = conditional.constraint
        if isinstance(constraint, TimeOfDateConstraint):
            of_hours.append(conditional.prices)
        elif constraint is None or constraint.active(at):
            return max((conditional.prices, *of_hours), key=_height)
    return info.prices[0].prices


def _height(price: ModelPrice) -> float:
    return sum(_at(getattr(price, name, None), 0) or 0.0 for name in ("input_mtok", "output_mtok"))


def _batch_discount(provider: Provider, info: ModelInfo, standard: ModelPrice, at: datetime) -> float:
    """The smallest one of all kinds of tokens; none where the list has no batch price."""
    if not any(info is own for own in provider.models):
        return 0.0  # another provider's model: its batches aren't this provider's
    batch = info.get_prices(at, {"processing": "batch"})
    discounts = []
    for name in ("input_mtok", "output_mtok"):
        full, reduced = _at(getattr(standard, name, None), 0), _at(getattr(batch, name, None), 0)
        if full and reduced is not None:
            discounts.append(max(0.0, 1 - reduced / full))
    return round(min(discounts, default=0.0), 6)


def _at(rate: Any, input_tokens: int) -> float | None:
    """US dollars per million of a rate that may have steps; the step at ``input_tokens`` counts as reached."""
    if rate is None:
        return None
    reached = [step.price for step in getattr(rate, "tiers", ()) if step.start <= input_tokens]
    return float(reached[-1] if reached else getattr(rate, "base", rate))
