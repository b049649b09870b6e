"""One batch service at work at a time, of all that run.

It saves work and is no fence: every step of the service may be done twice, or by two at once. So a holder
that slept too long does no harm.
"""

from __future__ import annotations

import secrets
import time

from fabric.store import Command, Store

_KEY = "fabric:batches:lease"
#: How long a dead holder keeps the others waiting. Shorter costs more renewals.
TERM_MS = 3_000


class Lease:
    def __init__(self, store: Store, *, term_ms: int = TERM_MS) -> None:
        self._store = store
        self._term_ms = term_ms
        self._name = secrets.token_hex(8)
        self._renewed = -float("inf")

    def hold(self) -> bool:
        """Takes or keeps the lease; whether it is ours now.

        Raises:
            Unavailable: the store is away.
        """
        now = time.monotonic()
        if now - self._renewed < self._term_ms / 4000:
            return True
        ours = self._set("NX") or (self._owner() == self._name and self._set("XX"))
        self._renewed = now if ours else -float("inf")
        return ours

    def release(self) -> None:
        """The next one needn't wait for the term's end."""
        self._renewed = -float("inf")
        if self._owner() == self._name:
            self._store(Command(("DEL", _KEY), int))

    def _set(self, condition: str) -> bool:
        return self._store(Command(("SET", _KEY, self._name, "PX", self._term_ms, condition), bool))

    def _owner(self) -> str | None:
        return self._store(Command(("GET", _KEY), lambda answer: answer.decode() if answer else None))
