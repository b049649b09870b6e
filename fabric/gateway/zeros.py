"""What counters begin with: a 0 for every set of labels that is known beforehand.

Prometheus sees no increase in a counter's first sample. One that is born at 1 hides the first failure of its kind from
every ``rate()`` and ``increase()``, and from the alerts made of them. All sets are bounded: by the catalogue, and by
words of the code.
"""

from __future__ import annotations

from collections.abc import Iterator

from fabric.contracts.catalog import TIERS, Catalog
from fabric.contracts.failures import TABLE, handling
from fabric.contracts.job import ENDED, JobState
from fabric.gateway.counted import STAGES
from fabric.store.counts import NONE, REQUEUED, TOKEN_KINDS, Counts

_PREDICTIONS = ("first_token", "finish")
_ENDS = tuple(sorted(ENDED))
#: Why a job may go on to its next place.
_REASONS = tuple(sorted({row.error.code for row in TABLE if handling(row.error("").info).fall_back != "no"}))


def of_jobs(catalog: Catalog) -> Counts:
    """As ``fabric.store.counts`` names them."""
    return dict.fromkeys(_names(catalog), 0.0)


def _names(catalog: Catalog) -> Iterator[tuple[str, ...]]:
    places = [(deployment.tier, deployment.name) for deployment in catalog.by_deployment.values()]
    for place in places:
        for state in _ENDS:
            yield "jobs", *place, state
        for result in (*_ENDS, REQUEUED):
            yield "attempts", *place, result
        for kind in TOKEN_KINDS:
            yield "tokens", *place, kind
        for amount in ("cost", "cloud", "compared"):
            yield amount, *place
    for state in _ENDS:
        if state is not JobState.SUCCEEDED:  # jobs that end before they have a place
            yield "jobs", NONE, NONE, state
    for tier in (tier for tier in TIERS if catalog.of_tier(tier)):
        for stage in STAGES:
            yield "stage_sum", stage, tier
        for kind in _PREDICTIONS:
            yield "error_sum", kind, tier


def fallbacks(catalog: Catalog) -> dict[tuple[str, str, str], int]:
    """(Tier left, tier gone to, code of the error): between tiers of one model."""
    ways = {
        (left.tier, to.tier)
        for model in catalog.models
        for left in model.deployments
        for to in model.deployments
        if left.name != to.name
    }
    return {(*way, reason): 0 for way in sorted(ways) for reason in _REASONS}
