"""What callers are told of rate limits: headers as OpenAI's, and errors that say which limit and when there is room."""

from __future__ import annotations

from starlette.types import Scope

from fabric.contracts.errors import RateLimitExceeded
from fabric.contracts.limits import Levels
from fabric.gateway.responses import Header
from fabric.routing.limits import told
from fabric.store.transitions import LimitedBy

#: Where a request's ASGI scope has headers for whatever its answer is.
HEADERS = "fabric.rate_headers"

_SAID = {
    "requests": "{owner} may send {limit:,} requests a minute",
    "tokens": "{owner} may use {limit:,} tokens a minute",
    "concurrent": "{owner} may have {limit:,} jobs that wait or run at once",
    "batch_tokens": "{owner} may have {limit:,} prompt tokens of batch work at once",
}


class Throttled(RateLimitExceeded):
    """``levels``: what is left of the limits by the minute."""

    def __init__(self, by: LimitedBy, levels: Levels | None) -> None:
        said = _SAID[by.kind].format(owner=told(by.owner), limit=by.limit)
        when = "as soon as some of them have ended"
        if by.kind in ("requests", "tokens"):
            when = f"in {by.wait_ms / 1000:.3g} s"
        super().__init__(f"Rate limit reached: {said}. Try again {when}.", retry_after_s=by.wait_ms / 1000)
        self.scope = by.owner.partition(":")[0]
        self.kind = by.kind
        self.levels = levels


def keep(scope: Scope, levels: Levels | None) -> None:
    """The answer to this request will tell them."""
    if levels is not None:
        scope[HEADERS] = list(_headers(levels))


def _headers(levels: Levels) -> list[Header]:
    found: list[Header] = []
    for kind, level in ((b"requests", levels.requests), (b"tokens", levels.tokens)):
        if level is not None:
            limit, remaining, reset_ms = level
            found += [
                (b"x-ratelimit-limit-" + kind, b"%d" % limit),
                (b"x-ratelimit-remaining-" + kind, b"%d" % remaining),
                (b"x-ratelimit-reset-" + kind, duration(reset_ms).encode()),
            ]
    return found


def duration(ms: int) -> str:
    """As OpenAI writes it: ``850ms``, ``7.66s``, ``2m59.56s``."""
    if ms < 1000:
        return f"{ms}ms"
    minutes, rest = divmod(ms, 60_000)
    seconds = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    return f"{minutes}m{seconds}" if minutes else seconds
