"""Metrics of what jobs came to, from the store's counts: jobs, attempts, tokens, money, stages,
errors of predictions. Right for any number of
gateways and recorders, each of which shows the same."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

from fabric.store import counts
from fabric.store.counts import Counts, Histogram

_PLACE = ("tier", "deployment")
#: Name in the counts -> (metric, what it counts, the last label).
_COUNTERS = {
    "jobs": ("fabric_jobs", "Jobs that ended.", "outcome"),
    "attempts": ("fabric_attempts", "Tries that ended; those that weren't their job's last are `requeued`.", "result"),
    "tokens": ("fabric_tokens", "Tokens: cached_input is a part of input, reasoning of output.", "kind"),
    "cost": ("fabric_cost_usd", "US dollars.", None),
    "cloud": (
        "fabric_cloud_equivalent_usd",
        "US dollars that the tokens of answers would have cost at the cheapest permitted hosted API.",
        None,
    ),
    "compared": ("fabric_compared_cost_usd", "US dollars that the answers with a cloud equivalent did cost.", None),
}
STAGE_SECONDS = "fabric_stage_seconds"
_STAGE_HELP = "Time that jobs spend in each stage."
#: The stages that are counted in the store.
STAGES = ("backlog", "queue", "engine", "commit")


def families(found: Counts) -> Iterator[Metric]:
    for name, (metric, said, label) in _COUNTERS.items():
        family = CounterMetricFamily(metric, said, labels=(*_PLACE, *((label,) if label else ())))
        for key, value in sorted(found.items()):
            if key[0] == name:
                family.add_metric(key[1:], value)
        yield family

    yield _histogram(
        found,
        "error",
        HistogramMetricFamily(
            "fabric_prediction_error_ratio",
            "|predicted - actual| / actual, of predictions that rested on measurements.",
            labels=("kind", "tier"),
        ),
    )


def stage_seconds(found: Counts) -> Metric:
    """The histogram of the stages that end in the store."""
    stages = {key: value for key, value in found.items() if not key[0].startswith("stage") or key[1] in STAGES}
    return _histogram(stages, "stage", HistogramMetricFamily(STAGE_SECONDS, _STAGE_HELP, labels=("stage", "tier")))


def _histogram(found: Counts, name: Histogram, family: HistogramMetricFamily) -> Metric:
    for _, of, tier in sorted(key for key in found if key[0] == f"{name}_sum"):
        buckets = [
            ("+Inf" if bound == counts.INFINITY else bound, below)
            for bound, below in counts.buckets(found, of, tier, name)
        ]
        family.add_metric([of, tier], buckets, found[f"{name}_sum", of, tier])
    return family
