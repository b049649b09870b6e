"""Takes deliveries from the ledger to their receivers, again and again until they arrive or a day has passed."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import httpx
from sqlalchemy import Connection

from fabric.contracts.budget import Budget, Window
from fabric.contracts.completion import Completion
from fabric.contracts.errors import ConfigError, Unavailable
from fabric.contracts.webhook import Webhook, budget_event, job_event, wanted
from fabric.ledger import Ledger, deliveries
from fabric.ledger.deliveries import Delivery, Tried
from fabric.webhooks import signature
from fabric.webhooks.reach import ForbiddenAddress, Resolve, Transport, resolve

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Between two looks, where nothing was due.
_LOOK_S = 1.0
#: Of one receiver at once. One that is slow holds up only itself.
_AT_ONCE = 16
#: From the connection to the end of the answer's head.
TIMEOUT_S = 15.0
#: How long a delivery that was taken is left to whoever took it.
_TAKEN_MS = 60_000
#: The wait before the second try is up to so long; twice that before the third, and so on up to the cap.
_BACKOFF_S = 5.0
_BACKOFF_CAP_S = 3_600.0
#: After this it is parked.
PATIENCE_MS = 86_400_000
#: How long deliveries that have ended stay to be looked at.
_KEPT_MS = 7 * 86_400_000
_PRUNE_S = 3_600.0
_GONE = 410


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def keys_of(hooks: Sequence[Webhook], environ: Mapping[str, str]) -> dict[str, bytes]:
    """The signing key of each webhook.

    Raises:
        ConfigError: a secret is missing, or isn't one.
    """
    keys = {}
    for hook in hooks:
        secret = environ.get(hook.secret_env, "")
        if not secret:
            raise ConfigError(
                f"The secret of webhook {hook.name!r} is missing: set {hook.secret_env} for the recorder."
            )
        keys[hook.name] = signature.key_of(secret, hook.secret_env)
    return keys


def announce(hooks: Sequence[Webhook]) -> Callable[[Connection, Sequence[Completion]], None]:
    """For the recorder: in the transaction that keeps a completion, who is to be told of it is written down."""

    def add(connection: Connection, completions: Sequence[Completion]) -> None:
        events = (event for done in completions if (event := job_event(done)) is not None)
        deliveries.add(connection, wanted(hooks, events), _now_ms())

    return add


def tell_of_budgets(ledger: Ledger, hooks: Sequence[Webhook]) -> Callable[[Budget, Window, int], None]:
    """For who keeps the budgets: who is to be told that a soft one is used up is written down."""

    def tell(budget: Budget, window: Window, used: int) -> None:
        event = budget_event(budget, window, used, _now_ms())
        if told := wanted(hooks, [event]):
            ledger.write(deliveries.add, told, _now_ms())

    return tell


def next_try_ms(tries: int, created_ms: int, now_ms: int, chance: float) -> int | None:
    """When to try again after so many tries; ``None``: not any more. ``chance``: from 0 to 1, so that receivers
    which were away don't get everything at once."""
    if now_ms - created_ms >= PATIENCE_MS:
        return None
    most_s = min(_BACKOFF_CAP_S, _BACKOFF_S * 2.0 ** min(tries - 1, 30))
    return now_ms + round(most_s * (0.5 + chance / 2) * 1000)


class Courier:
    """Blocking; one thread. Any number may run: a delivery is taken by one of them at a time."""

    def __init__(
        self,
        ledger: Ledger,
        hooks: Sequence[Webhook],
        keys: Mapping[str, bytes],
        *,
        look_s: float = _LOOK_S,
        timeout_s: float = TIMEOUT_S,
        resolve: Resolve = resolve,
        now_ms: Callable[[], int] = _now_ms,
    ) -> None:
        self._ledger = ledger
        self._hooks = hooks
        self._keys = keys
        self._look_s = look_s
        self._timeout_s = timeout_s
        self._resolve = resolve
        self._now_ms = now_ms

    def run(self, stop: threading.Event) -> None:
        """Until ``stop`` is set. The ledger may come and go."""
        asyncio.run(self._run(stop))

    async def _run(self, stop: threading.Event) -> None:
        await asyncio.gather(self._keep_books(stop), *(self._serve(hook, stop) for hook in self._hooks))

    async def _keep_books(self, stop: threading.Event) -> None:
        prune_at = 0.0
        orphans = True
        while not stop.is_set():
            try:
                if orphans:
                    names = [hook.name for hook in self._hooks]
                    await self._write(deliveries.park_orphans, names, self._now_ms())
                    orphans = False
                if await asyncio.to_thread(self._ledger.read, deliveries.any_ended):
                    await self._write(self._tell_of_batches)
                if time.monotonic() >= prune_at:
                    while await self._write(deliveries.prune, self._now_ms() - _KEPT_MS):
                        pass
                    prune_at = time.monotonic() + _PRUNE_S
            except Unavailable as error:
                log.debug("webhooks wait: %s", error)  # the recorder says it louder
            await asyncio.to_thread(stop.wait, self._look_s)

    def _tell_of_batches(self, connection: Connection) -> None:
        deliveries.add(connection, wanted(self._hooks, deliveries.ended(connection)), self._now_ms())

    async def _serve(self, hook: Webhook, stop: threading.Event) -> None:
        transport = Transport(allow_private=hook.allow_private, resolve=self._resolve)
        async with httpx.AsyncClient(transport=transport, timeout=self._timeout_s, follow_redirects=False) as http:
            while not stop.is_set():
                try:
                    if await self._round(hook, http):
                        continue
                except Unavailable as error:
                    log.debug("webhook %s waits: %s", hook.name, error)
                await asyncio.to_thread(stop.wait, self._look_s)

    async def _round(self, hook: Webhook, http: httpx.AsyncClient) -> int:
        """Answers how many deliveries were tried."""
        now = self._now_ms()
        if not await asyncio.to_thread(self._ledger.read, deliveries.any_due, hook.name, now):
            return 0
        taken = await self._write(deliveries.take, hook.name, now, now + _TAKEN_MS, _AT_ONCE)
        tried = await asyncio.gather(*(self._try(hook, delivery, http) for delivery in taken))
        await self._write(deliveries.note, tried, self._now_ms())
        return len(tried)

    async def _try(self, hook: Webhook, delivery: Delivery, http: httpx.AsyncClient) -> Tried:
        status, error = await self._send(hook, delivery, http)
        if error is None:
            return Tried(delivery.id, "delivered", status, None)
        now = self._now_ms()
        again = next_try_ms(delivery.tries + 1, delivery.created_ms, now, random.random())  # noqa: S311 - no secret
        if again is None or status == _GONE:
            log.error("event %s for webhook %s is parked: %s", delivery.event_id, hook.name, error)
            return Tried(delivery.id, "parked", status, error)
        log.warning("event %s didn't reach webhook %s: %s", delivery.event_id, hook.name, error)
        return Tried(delivery.id, "waiting", status, error, again)

    async def _send(self, hook: Webhook, delivery: Delivery, http: httpx.AsyncClient) -> tuple[int | None, str | None]:
        """The answer's status, and what was wrong. What the receiver says is not read: it could be long, or odd."""
        signed = signature.headers(self._keys[hook.name], delivery.event_id, self._now_ms() // 1000, delivery.body)
        try:
            async with asyncio.timeout(self._timeout_s):
                async with http.stream("POST", hook.url, content=delivery.body, headers=signed) as answer:
                    status = answer.status_code
        except (httpx.TimeoutException, TimeoutError):
            return None, f"no answer within {self._timeout_s:g} s"
        except httpx.TransportError as error:
            forbidden = isinstance(error.__cause__, ForbiddenAddress)
            return None, str(error) if forbidden else f"it can't be reached ({type(error).__name__})"
        if 200 <= status < 300:
            return status, None
        return (
            status,
            "it answered with a redirect, which isn't followed" if 300 <= status < 400 else f"it answered {status}",
        )

    async def _write(self, statement: Callable[..., T], *args: object) -> T:
        return await asyncio.to_thread(self._ledger.write, statement, *args)
