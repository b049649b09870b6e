"""The completion window: how long a batch may take."""

from __future__ import annotations

import re

from fabric.contracts.errors import InvalidRequest

_FORM = re.compile(r"([1-9][0-9]{0,4})([mhd])")
_MS = {"m": 60_000, "h": 3_600_000, "d": 86_400_000}
_LONGEST_MS = 30 * _MS["d"]


def expires_ms(completion_window: str, now_ms: int) -> int:
    """
    Raises:
        InvalidRequest: not minutes, hours or days, or more than 30 days.
    """
    form = _FORM.fullmatch(completion_window)
    length = int(form[1]) * _MS[form[2]] if form else 0
    if not 0 < length <= _LONGEST_MS:
        raise InvalidRequest(
            "`completion_window` must be `24h`, or another time of up to 30 days such as `90m`, `6h` or `7d`.",
            param="completion_window",
        )
    return now_ms + length
