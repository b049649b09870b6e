"""Runs store commands on a connection, blocking or asyncio.

Both reload a script that the server has lost (it restarted or was flushed) and turn connection
failures into ``Unavailable``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, TypeVar

import redis
import redis.asyncio
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from fabric.contracts.errors import Unavailable
from fabric.contracts.tls import distrust
from fabric.store.command import Command

T = TypeVar("T")
U = TypeVar("U")

_UNREACHABLE = "The job store (Redis) can't be reached; it is tried again until it is back."
_UNTRUSTED = "The job store (Redis) isn't trusted. {why}"
_REFUSED = "The job store (Redis) refused the write: {reason}. Check its memory limit and disk."


def unavailable(error: RedisError | OSError) -> Unavailable:
    if why := distrust(error, "FABRIC_REDIS_CA"):
        return Unavailable(_UNTRUSTED.format(why=why), retry_after_s=1)
    if isinstance(error, RedisConnectionError | RedisTimeoutError | OSError):
        return Unavailable(_UNREACHABLE, retry_after_s=1)
    return Unavailable(_REFUSED.format(reason=str(error).split(" ", 1)[0]), retry_after_s=1)


class Store:
    """Blocking: for the scheduler's loop and the workers' claiming threads. Safe to share."""

    def __init__(self, url: str, *, timeout_s: float = 5.0) -> None:
        #: Also used for plain Redis calls that need blocking reads.
        self.redis: Any = redis.Redis.from_url(
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(ExponentialBackoff(cap=0.2, base=0.02), retries=2),
            health_check_interval=30,
        )

    def __call__(self, command: Command[T]) -> T:
        """
        Raises:
            Unavailable: Redis is away or refuses writes. The transition may or may not have
                happened; every transition can be sent again.
        """
        try:
            try:
                answer = self.redis.execute_command(*command.args)
            except NoScriptError:
                if command.script is None:
                    raise
                self.redis.script_load(command.script.source)
                answer = self.redis.execute_command(*command.args)
        except (RedisError, OSError) as error:
            raise unavailable(error) from error
        return command.parse(answer)

    def both(self, first: Command[T], second: Command[U]) -> tuple[T, U]:
        """One right after the other: nobody does anything in between. Raises ``Unavailable``."""
        commands = (first, second)
        try:
            # A script that is missing would be found so when the other one has run.
            for command in commands:
                if command.script is not None:
                    self.redis.script_load(command.script.source)
            with self.redis.pipeline(transaction=True) as together:
                for command in commands:
                    together.execute_command(*command.args)
                answers = together.execute()
        except (RedisError, OSError) as error:
            raise unavailable(error) from error
        return first.parse(answers[0]), second.parse(answers[1])

    def close(self) -> None:
        self.redis.close()


class AsyncStore:
    """asyncio: for the gateway, and for the workers' loop."""

    def __init__(self, url: str, *, timeout_s: float = 5.0, connections: int = 64) -> None:
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            url,
            max_connections=connections,
            timeout=timeout_s,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
        )
        self.redis: Any = redis.asyncio.Redis(
            connection_pool=pool,
            retry=redis.asyncio.retry.Retry(ExponentialBackoff(cap=0.2, base=0.02), retries=2),
        )

    async def __call__(self, command: Command[T]) -> T:
        """Raises ``Unavailable`` as ``Store`` does."""
        cancelled = _cancelled()
        try:
            try:
                answer = await self.redis.execute_command(*command.args)
            except NoScriptError:
                if command.script is None:
                    raise
                await self.redis.script_load(command.script.source)
                answer = await self.redis.execute_command(*command.args)
        except (RedisError, OSError) as error:
            raise unavailable(error) from error
        finally:
            _not_in_vain(cancelled)
        return command.parse(answer)

    async def all(self, commands: Iterable[Command[T]]) -> list[T]:
        """Reads in one round trip. Not for scripts. Raises ``Unavailable`` as ``Store`` does."""
        asked = list(commands)
        pipeline = self.redis.pipeline(transaction=False)
        for command in asked:
            pipeline.execute_command(*command.args)
        cancelled = _cancelled()
        try:
            answers = await pipeline.execute()
        except (RedisError, OSError) as error:
            raise unavailable(error) from error
        finally:
            _not_in_vain(cancelled)
        return [command.parse(answer) for command, answer in zip(asked, answers, strict=True)]

    async def close(self) -> None:
        await self.redis.aclose()


def _cancelled() -> int:
    """How often the running task was cancelled and has not made good for it."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def _not_in_vain(before: int) -> None:
    """redis-py sends under ``asyncio.wait_for``, which in Python 3.11 forgets that it was cancelled when what it waits
    for is done in the same turn: a task that calls the store again and again would go on for ever.

    Raises:
        CancelledError: that happened since ``before``.
    """
    if _cancelled() > before:
        raise asyncio.CancelledError
