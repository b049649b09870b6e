"""What has happened, counted in the store: right whatever the number of gateways, recorders and schedulers.

Counts are named by words with a space between them, the first of which says what is counted:

    jobs TIER DEPLOYMENT STATE        jobs that ended
    tokens TIER DEPLOYMENT KIND       input, cached_input, output, reasoning
    cost TIER DEPLOYMENT              US dollars
    cloud TIER DEPLOYMENT             US dollars that answers would have cost in the cloud
    compared TIER DEPLOYMENT          US dollars that the same answers did cost
    attempts TIER DEPLOYMENT RESULT   tries: an end state, or ``requeued``
    stage STAGE TIER BOUND            observations at most BOUND seconds long, and longer than the bound before
    stage_sum STAGE TIER              seconds; stages are backlog, queue, engine, commit, and wait: the first two
    error WHAT TIER BOUND             predictions (first_token, finish) that were wrong by that share of what came true
    error_sum WHAT TIER               the shares

They are kept twice: for good (metrics), and by the minute for the last quarter of an hour (the console).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from fabric.contracts.completion import Completion
from fabric.contracts.job import JobState, Measures
from fabric.store.command import Argument, Command, call

Amounts = defaultdict[str, float]
Counts = Mapping[tuple[str, ...], float]

Histogram = Literal["stage", "error"]
#: Upper bounds of the histograms' buckets, in seconds; beyond the last one it is ``inf``.
BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600)
INFINITY = "inf"
#: Of shares: |predicted - actual| / actual.
ERROR_BOUNDS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2, 5, 10)
_BOUNDS: dict[Histogram, Sequence[float]] = {"stage": BOUNDS_S, "error": ERROR_BOUNDS}
_BOUND_NAMES = {name: (*(f"{bound:g}" for bound in bounds), INFINITY) for name, bounds in _BOUNDS.items()}
#: How long a minute's counts stay: what the console looks back on, and some more.
_MINUTE_TTL_S = 1_200
TOKEN_KINDS = ("input", "cached_input", "output", "reasoning")
#: The result of a try that didn't end its job.
REQUEUED = "requeued"
#: In place of a tier or deployment that there never was.
NONE = "none"


def tally(completions: Iterable[Completion]) -> Amounts:
    """What these completions add."""
    amounts: Amounts = defaultdict(float)
    for done in completions:
        _add(amounts, done)
    return amounts


def _add(amounts: Amounts, done: Completion) -> None:
    tier = done.tier or NONE
    if done.late:
        _add_used(amounts, f"{tier} {done.deployment or NONE}", done.measures)
        return
    if done.spec.hedge_of is None:  # the first job's end is counted
        amounts[f"jobs {tier} {done.deployment or NONE} {done.state}"] += 1
    last_try = done.last_try
    if done.attempt and last_try is None:
        _add_attempt(amounts, tier, done.deployment, done.state, done.measures)
    for earlier in reversed(done.earlier):
        if earlier.outcome == JobState.DEAD:  # counted with those before it when the job was parked
            break
        # The try that a job waited behind when it ended is its last one: as the ledger has it.
        result = done.state if earlier is last_try else REQUEUED
        _add_attempt(amounts, earlier.tier or NONE, earlier.deployment, result, earlier.measures)
    if done.dispatched_ms is None:
        return
    observe(amounts, "backlog", tier, (done.dispatched_ms - done.accepted_ms) / 1000)
    if done.claimed_ms is None:
        return
    held_s = (done.finished_ms - done.claimed_ms) / 1000
    observe(amounts, "wait", tier, (done.claimed_ms - done.accepted_ms) / 1000)
    observe(amounts, "queue", tier, (done.claimed_ms - done.dispatched_ms) / 1000 + done.measures.gate_s)
    if done.measures.engine_s:
        observe(amounts, "engine", tier, done.measures.engine_s)
        observe(amounts, "commit", tier, held_s - done.measures.gate_s - done.measures.engine_s)


def _add_attempt(amounts: Amounts, tier: str, deployment: str | None, result: str, measures: Measures) -> None:
    place = f"{tier} {deployment or NONE}"
    amounts[f"attempts {place} {result}"] += 1
    _add_used(amounts, place, measures)


def _add_used(amounts: Amounts, place: str, measures: Measures) -> None:
    for kind in TOKEN_KINDS:
        if tokens := getattr(measures.usage, f"{kind}_tokens"):
            amounts[f"tokens {place} {kind}"] += tokens
    if measures.cost_usd:
        amounts[f"cost {place}"] += measures.cost_usd


def observe(amounts: Amounts, stage: str, tier: str, seconds: float) -> None:
    """Adds one observation to a stage's histogram. Clocks of two machines may make it negative: that is 0."""
    _observe(amounts, "stage", f"{stage} {tier}", max(0.0, seconds))


def compared(amounts: Amounts, done: Completion, cloud_usd: float) -> None:
    """Adds what an answer would have cost in the cloud, and what it did cost."""
    place = f"{done.tier or NONE} {done.deployment or NONE}"
    amounts[f"cloud {place}"] += cloud_usd
    amounts[f"compared {place}"] += done.measures.cost_usd


def mispredicted(amounts: Amounts, what: str, tier: str, predicted_s: float, actual_s: float) -> None:
    """Adds a prediction that has come true, somehow."""
    if actual_s > 0:
        _observe(amounts, "error", f"{what} {tier}", abs(predicted_s - actual_s) / actual_s)


def _observe(amounts: Amounts, histogram: Histogram, of: str, value: float) -> None:
    amounts[f"{histogram} {of} {_BOUND_NAMES[histogram][bisect_left(_BOUNDS[histogram], value)]}"] += 1
    amounts[f"{histogram}_sum {of}"] += value


def add(amounts: Mapping[str, float]) -> Command[int]:
    """What no completion stands for."""
    return call("count", [_MINUTE_TTL_S, *_pairs(amounts)], int)


def let_go(group: str, entries: Sequence[bytes], amounts: Mapping[str, float]) -> Command[int]:
    """The ledger has these entries of the completion stream. Answers how many were still there to let go of."""
    return call("let_go", [group, _MINUTE_TTL_S, len(entries), *entries, *_pairs(amounts)], int)


def _pairs(amounts: Mapping[str, float]) -> Iterable[Argument]:
    for name, amount in amounts.items():
        yield name
        yield f"{amount:.12g}"


def totals() -> Command[Counts]:
    """Since the store was made."""
    return Command(("HGETALL", "fabric:totals"), _counts)


def minute(number: int) -> Command[Counts]:
    """``number``: minutes since the epoch, on the store's clock. Empty when it is long ago."""
    return Command(("HGETALL", f"fabric:minute:{number}"), _counts)


def _counts(answer: Any) -> Counts:
    pairs = answer.items() if isinstance(answer, dict) else zip(answer[::2], answer[1::2], strict=True)
    return {tuple(name.decode().split(" ")): float(value) for name, value in pairs}


def summed(several: Iterable[Counts]) -> Counts:
    total: dict[tuple[str, ...], float] = {}
    for counts in several:
        for name, value in counts.items():
            total[name] = total.get(name, 0.0) + value
    return total


def buckets(counts: Counts, of: str, tier: str, histogram: Histogram = "stage") -> list[tuple[str, float]]:
    """(upper bound, observations at most so large): cumulative, as Prometheus has them."""
    below, cumulative = 0.0, []
    for bound in _BOUND_NAMES[histogram]:
        below += counts.get((histogram, of, tier, bound), 0.0)
        cumulative.append((bound, below))
    return cumulative


def quantile(counts: Counts, of: str, tier: str, share: float, histogram: Histogram = "stage") -> float | None:
    """Linear inside of a bucket as ``histogram_quantile`` of Prometheus; ``None`` without observations."""
    found = buckets(counts, of, tier, histogram)
    rank, lower, before = share * found[-1][1], 0.0, 0.0
    if not found[-1][1]:
        return None
    for bound, below in found:
        if below >= rank and below > before:
            if bound == INFINITY:
                break
            return lower + (float(bound) - lower) * (rank - before) / (below - before)
        lower, before = (lower, below) if bound == INFINITY else (float(bound), below)
    return _BOUNDS[histogram][-1]
