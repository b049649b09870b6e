"""Rate limits that the workers of one account obey together, over Redis.

A worker that sends asks for permits, many at once, and asks again when they are used up: no request of a
quiet or a well-filled window waits for Redis. Pauses are pushed to all workers. While Redis is away each
worker goes by what it sees itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import deque
from collections.abc import Callable

from redis.exceptions import RedisError

from fabric.contracts.catalog import Deployment
from fabric.contracts.errors import Unavailable
from fabric.store import AsyncStore
from fabric.store.limits import CHANNEL, News, Seen, share
from workers.engines.limit_headers import Window
from workers.engines.provider_limits import LocalBoard

log = logging.getLogger(__name__)

#: A request that left this long ago has been counted by its provider. Longer wastes a bit of each window
#: (requests are held back that may go), shorter risks refusals where the way is long.
_UNSEEN_S = 0.5
#: How often a worker that sends says what it sees, and gives back what it doesn't use.
_REPORT_S = 0.25
#: Permits asked for at least. More ask less often, and lie about longer where another worker needs them.
_FEWEST = 4
_AWAY_S = 0.2


class SharedBoard:
    """One limit. On the loop's thread, but for ``wait_s``."""

    def __init__(self, limit: str, worker_id: str) -> None:
        self.limit = limit
        self._worker = worker_id
        self._store: AsyncStore | None = None
        self._local = LocalBoard()  # what this worker sees itself; counts alone while Redis is away
        self._alone_until = 0.0
        self._pause_until = 0.0
        self._tells = False
        self._permits = 0
        self._more_at = 0.0
        self._sent: deque[float] = deque()  # when, of those that may not have been counted
        self._unanswered = 0
        self._used = 0  # permits since the last call
        self._seen: tuple[Window, float] | None = None  # and when
        self._asking: asyncio.Task[None] | None = None
        self._telling: set[asyncio.Task[None]] = set()
        self._changed: Callable[[], None] = _nobody

    def open(self, store: AsyncStore) -> None:
        self._store = store

    def follow(self, changed: Callable[[], None]) -> None:
        self._changed = changed

    @property
    def asks(self) -> bool:
        now = time.monotonic()
        return self._tells and not self._permits and now >= self._more_at and not self._alone(now)

    async def ask(self, waiting: int) -> None:
        if self._asking is None:
            wanted = max(_FEWEST, waiting, 2 * self._used)
            self._asking = asyncio.create_task(self.report(wanted=wanted))
        # Whoever waits may leave; the call goes on for the others.
        await asyncio.shield(self._asking)

    def wait_s(self) -> float:
        now = time.monotonic()
        if not self._tells or self._alone(now):
            return max(0.0, self._pause_until - now, self._local.wait_s())
        return max(0.0, self._pause_until - now, 0.0 if self._permits else self._more_at - now)

    def take(self) -> None:
        self._local.take()
        self._permits = max(0, self._permits - 1)
        self._used += 1
        self._unanswered += 1
        self._sent.append(time.monotonic())

    def answered(self, window: Window | None) -> None:
        self._unanswered = max(0, self._unanswered - 1)
        self._local.answered(window)
        if window is None:
            return
        if not window.requests:  # tokens, and none are left
            self.pause(window.reset_s)
            return
        now = time.monotonic()
        if self._seen is None or window.remaining <= self._seen[0].remaining or now > self._seen[1] + window.reset_s:
            self._seen = window, now  # else it was overtaken by an answer that saw less
        if not self._tells:
            self._tells = True
            self._changed()

    def gave_up(self) -> None:
        self._unanswered = max(0, self._unanswered - 1)

    def pause(self, seconds: float) -> None:
        self._local.pause(seconds)
        until = time.monotonic() + seconds
        if until > self._pause_until:
            self._pause_until = until
            # Told at once, so that the others don't run into it, too.
            self._tell(pause_s=seconds)

    def hear(self, news: News) -> None:
        self._pause_until = max(self._pause_until, time.monotonic() + news.pause_s)
        if news.tells and not self._tells:
            self._tells = True
            self._tell()  # what was sent while no limit was in sight
        self._changed()

    def _tell(self, pause_s: float | None = None) -> None:
        telling = asyncio.get_running_loop().create_task(self.report(pause_s=pause_s))
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)

    @property
    def busy(self) -> bool:
        """Whether there is anything that the others should know."""
        return self._tells and bool(self._permits or self._used or self._seen)

    async def report(self, *, wanted: int = 0, pause_s: float | None = None) -> None:
        """Says what is seen here, and gets permits. Without ``wanted`` those go back that seem not to be needed."""
        now = time.monotonic()
        recent = self._recent(now)
        returned = 0 if wanted or pause_s is not None else max(0, self._permits - self._used)
        seen, self._seen = self._seen, None
        self._permits -= returned
        self._used = 0
        told = None if seen is None else Seen(seen[0].remaining, now - seen[1], seen[0].reset_s, seen[0].size)
        command = share(
            self.limit,
            self._worker,
            pause_s=pause_s,
            kept=self._permits,
            returned=returned,
            recent=recent,
            seen=told,
            wanted=wanted,
        )
        try:
            if self._store is None:
                raise Unavailable("The job store isn't open yet.")
            shared = await self._store(command)
        except Unavailable:
            self._alone_until = time.monotonic() + _AWAY_S
            return
        finally:
            if wanted:
                self._asking = None
                self._changed()
        now = time.monotonic()
        self._permits += shared.permits
        self._pause_until = max(self._pause_until, now + shared.pause_s)
        self._tells = self._tells or shared.tells
        if wanted:
            # Never at once: where nothing is to be had now, asking again changes nothing.
            self._more_at = now + max(0.005, shared.more_in_s) if not shared.permits else 0.0

    def _alone(self, now: float) -> bool:
        return now < self._alone_until

    def _recent(self, now: float) -> int:
        while self._sent and self._sent[0] < now - _UNSEEN_S:
            self._sent.popleft()
        return min(len(self._sent), self._unanswered)


class SharedLimits:
    """All limits of one worker."""

    def __init__(self, worker_id: str) -> None:
        self._worker = worker_id
        self._boards: dict[str, SharedBoard] = {}

    def board(self, deployment: Deployment) -> SharedBoard:
        """The limit that the deployment's account has for its model; two deployments may share one."""
        limit = limit_id(deployment)
        return self._boards.setdefault(limit, SharedBoard(limit, self._worker))

    async def run(self, store: AsyncStore) -> None:
        """Hears the others, and says what is seen here. Until cancelled; at once where there is no limit to share."""
        if not self._boards:
            return
        for board in self._boards.values():
            board.open(store)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._listen(store))
            group.create_task(self._report())

    async def _listen(self, store: AsyncStore) -> None:
        while True:
            try:
                async with store.redis.pubsub(ignore_subscribe_messages=True) as channel:
                    await channel.subscribe(CHANNEL)
                    for board in self._boards.values():
                        await board.report()  # what was said before
                    async for message in channel.listen():
                        news = News.load(message["data"])
                        if news.limit in self._boards:
                            self._boards[news.limit].hear(news)
            except (RedisError, OSError):
                await asyncio.sleep(_AWAY_S)

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(_REPORT_S)
            for board in self._boards.values():
                if board.busy:
                    await board.report()


def limit_id(deployment: Deployment) -> str:
    """Names the provider, the model and the place of the key, in a digest."""
    named = (
        deployment.engine,
        deployment.base_url,
        deployment.model,
        deployment.api_key_env,
        deployment.api_key_file,
    )
    return hashlib.blake2b(repr(named).encode(), digest_size=8).hexdigest()


def _nobody() -> None:
    """Waits at this board."""
