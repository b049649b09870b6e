"""What follows from a failure: one table, made of what the errors say of themselves. Pure.

Workers act on it when an attempt fails, the scheduler when a job looks for its next place, and
``docs/fallback.md`` shows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from fabric.contracts import errors
from fabric.contracts.breaker import End
from fabric.contracts.errors import ErrorInfo, FabricError, FallBackTo

#: ``backoff``: a few times, each counted against the job. ``wait``: as long as its deadline allows.
Retry = Literal["no", "backoff", "wait"]


_NOBODY_THERE = frozenset((errors.EngineUnavailable.code, errors.ProviderUnavailable.code))


@dataclass(frozen=True, slots=True)
class Handling:
    """``breaker``: it counts towards the deployment's breaker. ``fall_back``: to which places, if to any."""

    retry: Retry
    breaker: bool
    fall_back: FallBackTo | Literal["no"]


def handling(error: ErrorInfo) -> Handling:
    """For an attempt that ended with ``error``."""
    retry: Retry = "no"
    if error.retry and error.fault not in ("caller", "policy"):
        retry = "wait" if error.waits else "backoff"
    return Handling(retry, error.breaker, error.fall_back_to if error.fall_back else "no")


def end_for_breaker(error: ErrorInfo, failures: int) -> End:
    """What a failed try says of its deployment. ``failures``: tries of the same job that have failed there before.

    One request that an engine can't bear fails every time that it is tried, and must not close the place for all
    others: of one job only the first failure counts. That nobody is there to take it is never the request's doing.
    """
    if not error.breaker or (failures and error.code not in _NOBODY_THERE):
        return "neutral"
    return "bad"


class Row(NamedTuple):
    what: str
    error: type[FabricError]


#: What can happen to an attempt -> the error that it becomes.
TABLE: tuple[Row, ...] = (
    Row("the request is wrong (400, 422)", errors.EngineRejected),
    Row("the place doesn't do what a parameter asks for", errors.EngineUnsupported),
    Row("prompt and answer don't fit the context window", errors.ContextOverflow),
    Row("a content filter refuses the request", errors.ContentRefused),
    Row("the caller cancels", errors.Cancelled),
    Row("the deadline passes", errors.DeadlineExceeded),
    Row("the engine fails: an error of its own, out of memory", errors.EngineError),
    Row("the engine isn't there: crashed, restarting", errors.EngineUnavailable),
    Row("the engine wasn't there when the job's turn came", errors.EngineAway),
    Row("the engine takes too long", errors.EngineTimeout),
    Row("the engine's stream breaks after its first token", errors.StreamBroken),
    Row("the worker dies", errors.WorkerLost),
    Row("the API fails (409, 425, 5xx)", errors.ProviderError),
    Row("the API can't be reached", errors.ProviderUnavailable),
    Row("the API takes too long (408, time-outs)", errors.ProviderTimeout),
    Row("the provider's batch would miss the deadline", errors.ProviderBatchLate),
    Row("the provider's batch ended without an answer", errors.ProviderBatchExpired),
    Row("the API's stream breaks after its first token", errors.ProviderStreamBroken),
    Row("the API limits the rate (429)", errors.RateLimited),
    Row("the request alone is more than the API's limit (429)", errors.BeyondProviderLimit),
    Row("the account's credit is used up (402, 429)", errors.QuotaExhausted),
    Row("the API refuses the deployment's key (401, 403)", errors.ProviderAuth),
    Row("the API doesn't know the address or the model (404)", errors.ProviderMisconfigured),
    Row("the label forbids the place, as its worker finds", errors.LabelForbids),
    Row("a part of the fabric is away", errors.Unavailable),
)

_RETRY = {"no": "no", "backoff": "with backoff", "wait": "when it may, uncounted"}
_FALL_BACK = {"no": "no", "any": "yes", "larger_window": "to a larger window", "by_policy": "if the policy says so"}


def markdown() -> str:
    """The table as ``docs/fallback.md`` shows it."""
    lines = ["| what happens | code | whose fault | tried again there | counts for the breaker | falls back |"]
    lines.append("|---|---|---|---|---|---|")
    for what, error in TABLE:
        info = error("").info
        found = handling(info)
        breaker = "yes" if found.breaker else "no"
        cells = (what, f"`{info.code}`", info.fault, _RETRY[found.retry], breaker, _FALL_BACK[found.fall_back])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Chain:
    """What a job's earlier attempts leave of its choices.

    ``exhausted``: deployment and the code of the error that ended its tries there, in order. ``spent_usd``: by
    all attempts so far, of what the job may cost.
    """

    exhausted: tuple[tuple[str, str], ...] = ()
    spent_usd: float = 0.0

    @property
    def overflowed(self) -> tuple[str, ...]:
        """Deployments whose context window was too small."""
        return tuple(name for name, code in self.exhausted if code == errors.ContextOverflow.code)

    @property
    def refused(self) -> bool:
        """Whether a content filter has refused it."""
        return any(code == errors.ContentRefused.code for _, code in self.exhausted)

    def code_at(self, deployment: str) -> str | None:
        """What ended the tries there, if any did."""
        return next((code for name, code in self.exhausted if name == deployment), None)


NEW = Chain()
