"""Identifiers: a type prefix, then 26 characters that sort by creation time.

The characters are Crockford base 32 (no vowels that spell words, no look-alikes): 10 for the
time in milliseconds, 16 for randomness, as in the ULID specification.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_ID = re.compile(r"^(job|batch|file|worker|gateway|key|evt)[_-][0-9a-z]{26}$")


#: Two characters at a time: half the steps.
_PAIRS = tuple(first + second for first in _ALPHABET for second in _ALPHABET)


def _encode(number: int, length: int) -> str:
    """``length``, even, characters for the lowest ``5 * length`` bits."""
    return "".join([_PAIRS[number >> shift & 1023] for shift in range(5 * length - 10, -1, -10)])


def new_id(prefix: str) -> str:
    """A fresh identifier such as ``job_01jd5k…``."""
    return f"{prefix}_{_encode(time.time_ns() // 1_000_000, 10)}{_encode(secrets.randbits(80), 16)}"


def line_job_id(batch_id: str, line_no: int) -> str:
    """The job id of one batch line: the same every time, so feeding a line twice makes one job."""
    digest = hashlib.blake2b(f"{batch_id}:{line_no}".encode(), digest_size=10).digest()
    return f"job_{batch_id[-26:][:10]}{_encode(int.from_bytes(digest), 16)}"


def derived_id(prefix: str, *parts: str) -> str:
    """An identifier fixed by ``parts``, for things that must come out the same when made again."""
    digest = hashlib.blake2b(":".join(parts).encode(), digest_size=17).digest()
    return f"{prefix}_{_encode(int.from_bytes(digest) >> 6, 26)}"


def is_id(text: str, prefix: str) -> bool:
    """Whether ``text`` has the form of an identifier of that kind (says nothing of existence)."""
    return text.startswith(prefix) and _ID.match(text) is not None
