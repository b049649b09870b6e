"""What a job's tokens would have cost in the cloud: at the cheapest place that its rules permit, or the baseline."""

from __future__ import annotations

from collections.abc import Hashable

from fabric.contracts.catalog import Catalog, Price
from fabric.contracts.job import JobSpec, Usage
from fabric.pricing import token_usd
from fabric.routing.constraints import NO_LIMITS, check


class Comparison:
    """One catalogue's list prices. Not for several threads."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._baseline = catalog.baseline.price if catalog.baseline else None
        self._known: dict[Hashable, tuple[Price, ...]] = {}

    def of(self, spec: JobSpec, usage: Usage) -> tuple[float, float]:
        """US dollars: the cloud equivalent, and the baseline. 0 where there is nothing to compare with."""
        kind = (spec.model, spec.privacy, spec.needs, spec.allowed_tiers, spec.allowed_regions)
        prices = self._known.get(kind)
        if prices is None:
            prices = self._known[kind] = self._permitted(spec)
        if not prices and self._baseline is None:
            return 0.0, 0.0
        tokens = (usage.input_tokens, usage.output_tokens, usage.cached_input_tokens)
        baseline = token_usd(self._baseline, *tokens) if self._baseline else 0.0
        return min((token_usd(price, *tokens) for price in prices), default=baseline), baseline

    def _permitted(self, spec: JobSpec) -> tuple[Price, ...]:
        """Prices of the hosted deployments of the model that the job could have gone to, size aside."""
        model = self._catalog.by_model.get(spec.model)
        rule = self._catalog.privacy.of(spec.privacy)
        job = JobSpec(
            *(spec.id, spec.endpoint, spec.model),
            privacy=spec.privacy,
            needs=spec.needs,
            allowed_tiers=spec.allowed_tiers,
            allowed_regions=spec.allowed_regions,
        )
        return tuple(
            deployment.price
            for deployment in (model.deployments if model else ())
            if deployment.tier == "cloud"
            and deployment.price.version
            and check(job, deployment, rule, NO_LIMITS) is None
        )
