"""Asking an API and reading what comes, whatever its protocol: whole, or as a stream that is folded."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import orjson

from fabric.contracts.errors import FabricError
from workers.engines.engine import Emit
from workers.engines.http import Api

T = TypeVar("T")

#: With less brackets than these nothing can be nested too deep: most answers are spared a look.
_DEPTH_UNSEEN = 200


class NotTheProtocol(ValueError):
    """What came isn't in the API's protocol. ``str``: what it is instead, without values."""


class ErrorEvent(Exception):
    """The API sent an error where an answer belongs, with status 200."""

    def __init__(self, body: dict[str, Any]) -> None:
        super().__init__("an error in place of an answer")
        self.body = body


class Fold(Protocol):
    """One stream: events go in as they came, chunks come out as the fabric passes them on.

    What comes before the first token is held back, so that a stream that fails there has told the
    caller nothing and can be tried again.
    """

    begun: bool  #: a token, or the end of an answer, has come
    ended: bool  #: the API said that nothing follows

    @property
    def complete(self) -> bool:
        """Nothing of the answer is missing."""

    def take(self, payload: bytes) -> list[bytes]:
        """
        Raises:
            NotTheProtocol: this can't be an event.
            ErrorEvent: the API reports that it failed.
        """


async def ask_whole(
    api: Api, path: str, content: bytes, read: Callable[[bytes], T], traceparent: str | None = None
) -> tuple[T, float]:
    """What ``read`` makes of the answer's body, and the seconds that it took to come.

    Raises:
        FabricError: see ``Api.post``; ``read`` may raise ``NotTheProtocol`` and ``ErrorEvent``.
    """
    started = time.perf_counter()
    async with api.post(path, content, stream=False, traceparent=traceparent) as exchange:
        body = await exchange.whole()
    seconds = time.perf_counter() - started
    try:
        return read(body), seconds
    except (NotTheProtocol, ErrorEvent) as error:
        raise _named(api, error) from None


async def ask_stream(
    api: Api, path: str, content: bytes, fold: Fold, emit: Emit, traceparent: str | None = None
) -> float:
    """Emits the chunks of a stream to its end; answers the seconds until the first token.

    Raises:
        FabricError: see ``Api.post``. Once a token is out, nothing that may be tried again.
    """
    started = time.perf_counter()
    first_token_s = 0.0
    try:
        async with api.post(path, content, stream=True, traceparent=traceparent) as exchange:
            while not fold.ended and (events := await exchange.events()) is not None:
                for event in events:
                    for chunk in fold.take(event):
                        emit(chunk)
                if fold.begun:
                    first_token_s = first_token_s or time.perf_counter() - started
                    exchange.tick()
            if fold.ended:
                await exchange.rest()
        if not (fold.complete and fold.begun):
            raise NotTheProtocol("a stream that ended before its answer")
    except (FabricError, NotTheProtocol, ErrorEvent) as error:
        named = _named(api, error)
        raise (api.broken(named) if fold.begun else named) from None
    return first_token_s


def json_object(body: bytes) -> dict[str, Any]:
    """
    Raises:
        NotTheProtocol: it isn't one.
    """
    try:
        values = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise NotTheProtocol("JSON that isn't whole") from None
    if not isinstance(values, dict):
        raise NotTheProtocol("JSON that isn't an object")
    if body.count(b"[") + body.count(b"{") > _DEPTH_UNSEEN and not _can_go_on(values):
        raise NotTheProtocol("JSON that is nested too deep")
    return values


def _can_go_on(values: dict[str, Any]) -> bool:
    """JSON is read deeper than it is written. Passed on it lies in some levels more."""
    try:
        orjson.dumps([[[[[[[[values]]]]]]]])
    except TypeError:
        return False
    return True


def count(values: Any, name: str) -> int:
    """A counter of a usage object; 0 where it is missing or none."""
    found = values.get(name) if isinstance(values, dict) else None
    return found if isinstance(found, int) and found > 0 else 0


def _named(api: Api, error: FabricError | NotTheProtocol | ErrorEvent) -> FabricError:
    if isinstance(error, FabricError):
        return error
    return api.error_event(error.body) if isinstance(error, ErrorEvent) else api.wrong(str(error))
