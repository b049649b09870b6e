"""What becomes of a failed attempt: another try, the end, or the dead-letter queue. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from fabric.contracts.errors import ErrorInfo

#: Tries of one job before it is parked.
MAX_ATTEMPTS = 3
_BASE_MS = 200
_CAP_MS = 10_000


@dataclass(frozen=True, slots=True)
class Disposition:
    action: Literal["retry", "fail", "park"]
    delay_ms: int = 0


def dispose(error: ErrorInfo, attempt: int, *, random_: random.Random | None = None) -> Disposition:
    """
    The caller's fault ends the job at once. What may pass is tried again after exponential backoff
    with full jitter (a provider's ``Retry-After`` wins); out of tries, the job is parked.
    """
    if error.fault in ("caller", "policy"):
        return Disposition("fail")
    if not error.retry:
        return Disposition("park" if error.fall_back else "fail")
    if attempt >= MAX_ATTEMPTS:
        return Disposition("park")
    if error.retry_after_s is not None:
        return Disposition("retry", int(error.retry_after_s * 1000))
    ceiling = min(_CAP_MS, _BASE_MS * 2 ** (attempt - 1))
    return Disposition("retry", (random_ or random).randint(0, ceiling))
