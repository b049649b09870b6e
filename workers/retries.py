"""What becomes of a failed attempt: another try, the end, or the dead-letter queue. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from fabric.contracts.errors import ErrorInfo

#: Failed tries of one job that park it. Only what an engine or provider failed counts: not a message
#: that was lost, a worker that left, or one that died (``scheduler.duties.POISON_DEATHS``).
MAX_FAILURES = 3
_BASE_MS = 200
_CAP_MS = 10_000
#: The longest wait that a provider may ask for with ``Retry-After``.
_WAIT_CAP_MS = 300_000


@dataclass(frozen=True, slots=True)
class Disposition:
    action: Literal["retry", "fail", "park"]
    delay_ms: int = 0


def dispose(error: ErrorInfo, failures: int, *, random_: random.Random | None = None) -> Disposition:
    """``failures`` counts the failed tries of the job, this one included.

    The caller's fault ends the job at once. What may pass is tried again after exponential backoff
    with full jitter (a provider's ``Retry-After`` wins); out of tries, the job is parked.
    """
    if error.fault in ("caller", "policy"):
        return Disposition("fail")
    if not error.retry:
        return Disposition("park" if error.fall_back else "fail")
    if failures >= MAX_FAILURES:
        return Disposition("park")
    if error.retry_after_s is not None:
        return Disposition("retry", min(_WAIT_CAP_MS, max(0, int(error.retry_after_s * 1000))))
    ceiling = min(_CAP_MS, _BASE_MS * 2 ** max(0, failures - 1))
    return Disposition("retry", (random_ or random).randint(0, ceiling))
