"""Gives every deployment its price, once: its own from ``fabric.yaml``, else the list's; over all, the tier's hours."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from fabric.contracts.catalog import Baseline, Catalog, Deployment, Model, Price, Tier, TierCost
from fabric.contracts.errors import ConfigError
from fabric.pricing.price_list import list_price

log = logging.getLogger(__name__)

#: What a price that the operator wrote is from, unless it says so itself.
FROM_FILE = "fabric.yaml"
#: Where hosted APIs are if the deployment doesn't say.
_HOMES = {"openai": "https://api.openai.com/v1", "anthropic": "https://api.anthropic.com"}

Lookup = Callable[..., Price | None]


def priced(catalog: Catalog, lookup: Lookup = list_price) -> Catalog:
    """The same catalogue with every price filled in. Doing it again changes nothing.

    Raises:
        ConfigError: the list doesn't know the baseline.
    """
    models = tuple(_with_prices(model, catalog.tiers, lookup) for model in catalog.models)
    baseline = catalog.baseline and _with_price(catalog.baseline, lookup)
    return catalog.model_copy(update={"models": models, "baseline": baseline})


def _with_prices(model: Model, tiers: Mapping[Tier, TierCost], lookup: Lookup) -> Model:
    deployments = tuple(
        deployment.model_copy(update={"price": _price_of(deployment, tiers, lookup)})
        for deployment in model.deployments
    )
    return model.model_copy(update={"deployments": deployments})


def _price_of(deployment: Deployment, tiers: Mapping[Tier, TierCost], lookup: Lookup) -> Price:
    price = deployment.price
    if not price.version and price.model_fields_set:
        price = price.model_copy(update={"version": FROM_FILE})
    elif not price.version and deployment.engine in _HOMES:
        base_url = deployment.base_url or _HOMES[deployment.engine]
        found = lookup(deployment.model, base_url=base_url)
        if found is None and deployment.tier == "cloud":
            log.warning(
                "no price is known of deployment %s (model %r): what runs there counts as free; give it a `price`",
                deployment.name,
                deployment.model,
            )
        price = found or price
    hourly = tiers.get(deployment.tier)
    if hourly is not None and "machine_usd_per_hour" not in price.model_fields_set and hourly.machine_usd_per_hour:
        version = price.version or FROM_FILE
        price = price.model_copy(update={"machine_usd_per_hour": hourly.machine_usd_per_hour, "version": version})
    return price


def _with_price(baseline: Baseline, lookup: Lookup) -> Baseline:
    if baseline.price is not None:
        if baseline.price.version:
            return baseline
        return baseline.model_copy(update={"price": baseline.price.model_copy(update={"version": FROM_FILE})})
    found = lookup(baseline.model, provider=baseline.provider)
    if found is None:
        of = f" of {baseline.provider}" if baseline.provider else ""
        raise ConfigError(
            f"`baseline`: the price list has no model {baseline.model!r}{of}; correct the name, or give it a `price`."
        )
    return baseline.model_copy(update={"price": found})
