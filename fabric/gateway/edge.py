"""The edge of the application: counts every request, and makes one answer of whatever is raised inside."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from functools import cache
from typing import NoReturn

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from pydantic_core import InitErrorDetails
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fabric.contracts.errors import (
    BudgetExceeded,
    ErrorInfo,
    FabricError,
    InvalidRequest,
    NotAuthenticated,
    NotFound,
    Unavailable,
    where,
)
from fabric.contracts.refusal import refusal
from fabric.gateway.access import methods_of
from fabric.gateway.body import ClientGone
from fabric.gateway.metrics import Metrics
from fabric.gateway.rate_headers import HEADERS
from fabric.gateway.responses import Header, JobError, send_error

log = logging.getLogger(__name__)

#: What nginx calls a request whose client didn't wait for the answer.
_CLIENT_CLOSED = 499
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))

#: What RFC 9110 asks of every 401.
_CHALLENGE: tuple[Header, ...] = ((b"www-authenticate", b'Bearer realm="fabric"'),)

INTERNAL = FabricError("Something went wrong inside the fabric. Its log says more.").info
STOPPING = Unavailable(
    "The gateway is being stopped. A job that was accepted goes on: GET /v1/jobs lists it.", retry_after_s=1
).info


class MethodNotAllowed(FabricError):
    """There is such a route, but not for this method."""

    status, type, code, fault = 405, "invalid_request_error", "method_not_allowed", "caller"


class Edge:
    def __init__(self, app: ASGIApp, metrics: Metrics, route: str | None = None) -> None:
        """``route``: what all of the requests are for; ``None``: the application finds it."""
        self._app = app
        self._route = route
        self._metrics = metrics
        self._counter = cache(metrics.requests.labels)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if HEADERS in scope:
                    message = {**message, "headers": [*message["headers"], *scope[HEADERS]]}
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except (ClientGone, ClientDisconnect):
            status = status or _CLIENT_CLOSED
        except asyncio.CancelledError:
            # The server stops and doesn't wait any longer. What streams says its own last word.
            if not status:
                await send_error(sending, STOPPING)
        except Exception as error:  # noqa: BLE001 - the last one who can answer
            info, headers = self._told(error, scope)
            self._metrics.errors.labels(info.fault).inc()
            if isinstance(error, BudgetExceeded) and error.of is not None:
                self._metrics.budget_blocks.labels(*error.of).inc()
            if not status:
                await send_error(sending, info, headers, ended=isinstance(error, JobError))
        finally:
            method = scope["method"]
            self._counter(self._route_of(scope), method if method in _METHODS else "other", str(status)).inc()

    def _told(self, error: Exception, scope: Scope) -> tuple[ErrorInfo, Iterable[Header]]:
        if isinstance(error, FabricError):
            return error.info, _CHALLENGE if isinstance(error, NotAuthenticated) else ()
        if isinstance(error, JobError):
            return error.info, error.headers
        # The text of an unforeseen error may quote a prompt: only its kind is told.
        log.error("%s %s: %s%s", scope["method"], self._route_of(scope), type(error).__name__, where(error))
        return INTERNAL, ()

    def _route_of(self, scope: Scope) -> str:
        """The route as it was declared, never the path as the caller wrote it."""
        return self._route or str(getattr(scope.get("route"), "path", "unmatched"))


async def refuse_http(request: Request, error: Exception) -> NoReturn:
    """Starlette's own errors, in our words; the edge answers them."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = ", ".join(methods_of(request.url.path))
        refused = MethodNotAllowed(f"This route takes {allowed}." if allowed else "Not this method.").info
        raise JobError(refused, [(b"allow", allowed.encode())] if allowed else ())
    if error.status_code == 404:
        raise NotFound("There is no such route. GET /docs lists those that there are.")
    raise InvalidRequest("The request can't be read.")


async def refuse_parameters(request: Request, error: Exception) -> NoReturn:
    """Wrong query or path parameters, as every other wrong field."""
    assert isinstance(error, RequestValidationError)
    details: list[InitErrorDetails] = [
        {"type": found["type"], "loc": tuple(found["loc"][1:]), "input": None, "ctx": found.get("ctx", {})}
        for found in error.errors()
    ]
    values = {**request.path_params, **request.query_params}
    raise refusal(ValidationError.from_exception_data("parameters", details), values) from None
