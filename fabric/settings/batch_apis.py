"""The second place that ``batch_api`` makes of a hosted deployment: the same model, through the provider's batch API.

A candidate like any other from here on: routed, explained, priced, walled off and fallen back from by the
same rules. It stands before the deployment that it comes from: where a policy sees no difference, work that
may wait goes to the cheaper one.
"""

from __future__ import annotations

from collections.abc import Iterator

from fabric.contracts.batch_api import BATCH_ENGINES, USUAL_DISCOUNT
from fabric.contracts.catalog import Catalog, Deployment, Model, Price
from fabric.contracts.errors import ConfigError

SUFFIX = "-batch"
#: The longest name of a deployment.
_NAME_CHARS = 63
#: How the version of a price begins that is the list's (``fabric.pricing``).
_LIST = "genai-prices"
#: Of a price: what tokens cost.
_RATES = ("input_per_million", "output_per_million", "cached_input_per_million")


def with_batch_apis(catalog: Catalog) -> Catalog:
    """The catalogue with those places in it. Prices must have been resolved.

    Raises:
        ConfigError: an engine is written that comes with ``batch_api`` alone, or a name is taken.
    """
    # Not ``by_deployment``: what a catalogue has worked out goes along into its copies.
    written = {deployment.name: deployment for model in catalog.models for deployment in model.deployments}
    for name, deployment in written.items():
        if deployment.waits:
            engine = deployment.engine.removesuffix("_batch")
            raise ConfigError(f"`{name}`: use `engine: {engine}` with `batch_api: {{}}`, which makes two places of it.")
        if deployment.batch_api is not None and (made := _name(deployment)) in written:
            raise ConfigError(f"`{made}` is the name that `batch_api` of `{name}` makes: give one of them another.")
    models = tuple(
        model.model_copy(update={"deployments": tuple(_places(model))})
        if any(deployment.batch_api for deployment in model.deployments)
        else model
        for model in catalog.models
    )
    return catalog.model_copy(update={"models": models}) if models != catalog.models else catalog


def _places(model: Model) -> Iterator[Deployment]:
    for deployment in model.deployments:
        if deployment.batch_api is not None:
            yield _second(deployment)
        yield deployment


def _name(deployment: Deployment) -> str:
    return deployment.name[: _NAME_CHARS - len(SUFFIX)] + SUFFIX


def _second(deployment: Deployment) -> Deployment:
    assert deployment.batch_api is not None
    return deployment.model_copy(
        update={
            "name": _name(deployment),
            "engine": BATCH_ENGINES[deployment.engine],
            "slots": deployment.batch_api.slots,
            "price": discounted(deployment.price),
        }
    )


def discounted(price: Price) -> Price:
    """What the same tokens cost in a batch. Waiting takes nothing of a machine."""
    # Of the list 0 only means that it doesn't know; written by the operator it is meant.
    written = "batch_discount" in price.model_fields_set and not price.version.startswith(_LIST)
    left = 1 - (price.batch_discount if price.batch_discount or written else USUAL_DISCOUNT)
    steps = tuple(step.model_copy(update=_times(step, left)) for step in price.long_context)
    return price.model_copy(
        update={**_times(price, left), "long_context": steps, "batch_discount": 0.0, "machine_usd_per_hour": 0.0}
    )


def _times(rates: object, factor: float) -> dict[str, float]:
    return {name: value * factor for name in _RATES if (value := getattr(rates, name)) is not None}
