"""Objectives: what makes one permitted candidate better than another. Lower scores go first.

Pure functions of one candidate, so that neither another candidate nor the order in which they come can
change a score. Of equal scores the operator's order decides.
"""

from __future__ import annotations

from collections.abc import Callable

from fabric.contracts.catalog import Deployment
from fabric.contracts.policy import Policy, PolicyKind
from fabric.routing.forecast import Forecast

#: US dollars and seconds that count for half in ``weighted``. Fixed, where scaling by the candidates' own
#: range would let a new candidate turn the order of the others.
COST_SCALE_USD = 0.01
LATENCY_SCALE_S = 10.0

#: Takes a candidate, its expected cost in US dollars, its forecast, and the policy.
Objective = Callable[[Deployment, float, Forecast, Policy], float]


def _local_first(deployment: Deployment, cost: float, forecast: Forecast, policy: Policy) -> float:
    return 1.0 if deployment.tier == "cloud" else 0.0


def _cloud_first(deployment: Deployment, cost: float, forecast: Forecast, policy: Policy) -> float:
    return 0.0 if deployment.tier == "cloud" else 1.0


def _cheapest(deployment: Deployment, cost: float, forecast: Forecast, policy: Policy) -> float:
    """US dollars."""
    return cost


def _fastest(deployment: Deployment, cost: float, forecast: Forecast, policy: Policy) -> float:
    """Seconds to the finished answer; those in the engine where nobody works."""
    return forecast.service_s if forecast.finish_s is None else forecast.finish_s


def _best_quality(deployment: Deployment, cost: float, forecast: Forecast, policy: Policy) -> float:
    return 1.0 - deployment.quality


def _weighted(deployment: Deployment, cost: float, forecast: Forecast, policy: Policy) -> float:
    """0 (free, at once, perfect) to 1."""
    weights = policy.weights
    assert weights is not None  # of a valid policy
    seconds = _fastest(deployment, cost, forecast, policy)
    badness = (
        weights.cost * cost / (cost + COST_SCALE_USD)
        + weights.latency * seconds / (seconds + LATENCY_SCALE_S)
        + weights.quality * (1.0 - deployment.quality)
    )
    return badness / weights.total


OBJECTIVES: dict[PolicyKind, Objective] = {
    "local-first": _local_first,
    "cloud-first": _cloud_first,
    "cheapest": _cheapest,
    "fastest": _fastest,
    "best-quality": _best_quality,
    "weighted": _weighted,
}
