"""What becomes of a failed attempt: another try, another place, the end, or the parked jobs. Pure.

``fabric.contracts.failures`` has the table behind it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from fabric.contracts.errors import ErrorInfo, RateLimited
from fabric.contracts.failures import handling

#: Tries of one job that may fail at one deployment. Only what an engine or provider failed counts: not a message
#: that was lost, a worker that left, or one that died (``scheduler.duties.POISON_DEATHS``).
MAX_FAILURES = 3
#: Waits of a job that has no deadline; hours, at the longest pause between two tries. A place that has taken nothing
#: for so long won't take it.
MAX_WAITS = 1_000
_BASE_MS = 200
_CAP_MS = 10_000
#: The longest wait that a provider may ask for with ``Retry-After``.
_WAIT_CAP_MS = 300_000

#: ``leave``: no further try at this deployment, perhaps one elsewhere.
Action = Literal["retry", "wait", "leave", "fail", "park"]


@dataclass(frozen=True, slots=True)
class Disposition:
    action: Action
    delay_ms: int = 0


def dispose(
    error: ErrorInfo,
    failures: int,
    *,
    attempt: int = 1,
    left_s: float | None = None,
    random_: random.Random | None = None,
) -> Disposition:
    """``failures`` counts the tries of the job that failed here, this one included; ``attempt`` all that it had
    anywhere; ``left_s`` are the seconds to its deadline.

    What may pass is tried again after exponential backoff with full jitter (a provider's ``Retry-After`` wins).
    A place that takes no more for now is waited for, which is no failure, until the deadline; without one, for
    ``MAX_WAITS`` tries at an API that limits the rate. Out of tries or of time, the job leaves for its next place,
    where there may be one.
    """
    found = handling(error)
    elsewhere: Action = "leave" if found.fall_back != "no" else "fail" if found.retry == "no" else "park"
    if found.retry == "no" or (found.retry == "backoff" and failures >= MAX_FAILURES):
        return Disposition(elsewhere)
    if found.retry == "wait" and left_s is None and attempt >= MAX_WAITS and error.code == RateLimited.code:
        return Disposition(elsewhere)
    if error.retry_after_s is not None:
        delay_ms = min(_WAIT_CAP_MS, max(0, int(error.retry_after_s * 1000)))
    else:
        tries = failures if found.retry == "backoff" else attempt
        delay_ms = (random_ or random).randint(0, min(_CAP_MS, _BASE_MS * 2 ** min(10, max(0, tries - 1))))
    if left_s is not None and delay_ms > left_s * 1000:
        return Disposition(elsewhere)
    return Disposition("wait" if found.retry == "wait" else "retry", delay_ms)
