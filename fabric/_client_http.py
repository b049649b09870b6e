"""The client's HTTP, on httpx. Everything that knows httpx is here, so that it can be swapped."""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from tenacity import AsyncRetrying, RetryCallState, Retrying, retry_if_exception, stop_after_attempt
from tenacity.wait import wait_exponential_jitter

from fabric._client_wire import Call, error_of, passing, unreachable
from fabric.contracts.errors import FabricError

DEFAULT_URL = "http://127.0.0.1:8080"
#: Longer than the gateway gives a request without a deadline of its own.
TIMEOUT_S = 630.0
RETRIES = 3
_CONNECT_S = 5.0
#: Connections of one client: as many as its caller has requests in flight.
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=128)
_backoff = wait_exponential_jitter(multiplier=0.2, max=5, jitter=0.2)


@dataclass(frozen=True, slots=True)
class Options:
    """``None``: from ``FABRIC_URL`` and ``FABRIC_API_KEY``."""

    base_url: str | None = None
    api_key: str | None = None
    timeout_s: float = TIMEOUT_S
    retries: int = RETRIES

    @property
    def url(self) -> str:
        return (self.base_url or os.environ.get("FABRIC_URL") or DEFAULT_URL).rstrip("/").removesuffix("/v1")

    def client(self) -> dict[str, Any]:
        """Arguments of an httpx client."""
        host = urlsplit(self.url).hostname or ""
        return {
            "timeout": httpx.Timeout(self.timeout_s, connect=_CONNECT_S),
            "limits": _LIMITS,
            # A proxy can't reach what listens on this machine's loopback.
            "trust_env": not (host == "localhost" or host == "::1" or host.startswith("127.")),
            "verify": _trusted(),
        }

    def request(self, call: Call, read_s: float | None = None) -> dict[str, Any]:
        """Arguments of an httpx request."""
        key = self.api_key or os.environ.get("FABRIC_API_KEY")
        arguments: dict[str, Any] = {
            "method": call.method,
            "url": self.url + call.path,
            "headers": {**call.headers, **({"Authorization": f"Bearer {key}"} if key else {})},
            "params": dict(call.query),
        }
        if call.body is not None:
            arguments["json"] = call.body
        if read_s is not None:
            arguments["timeout"] = httpx.Timeout(read_s, connect=_CONNECT_S)
        return arguments

    def tries(self, call: Call) -> dict[str, Any]:
        return {
            "stop": stop_after_attempt(self.retries + 1 if call.repeatable else 1),
            "retry": retry_if_exception(passing),
            "wait": _wait,
            "reraise": True,
        }


def _trusted() -> ssl.SSLContext | bool:
    """Authorities of one's own (``SSL_CERT_FILE``) count on loopback, too, unlike the rest of the environment."""
    file = os.environ.get("SSL_CERT_FILE")
    return ssl.create_default_context(cafile=file) if file else True


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after_s if isinstance(error, FabricError) and error.retry_after_s else 0.0
    return max(asked, _backoff(state))


@dataclass(frozen=True, slots=True)
class Response:
    body: bytes
    headers: Mapping[str, str]


class Http:
    """Blocking. Safe to share between threads."""

    def __init__(self, options: Options, client: httpx.Client | None = None) -> None:
        self._options = options
        self._client = client or httpx.Client(**options.client())

    def send(self, call: Call) -> Response:
        """
        Raises:
            FabricError: what the fabric answered, or that it can't be reached (code ``unreachable``).
        """
        for attempt in Retrying(**self._options.tries(call)):
            with attempt:
                return self._once(self._options.request(call))
        raise AssertionError("tenacity returns or raises")

    def upload(self, path: Path, purpose: str) -> Response:
        with path.open("rb") as file:
            form = {"data": {"purpose": purpose}, "files": {"file": (path.name, file, "application/jsonl")}}
            request = self._options.request(Call("POST", "/v1/files", repeatable=False))
            return self._once({**request, **form})

    @contextmanager
    def stream(self, call: Call, read_s: float | None = None) -> Iterator[Iterator[bytes]]:
        """The body as it comes. ``read_s``: silence after which ``unreachable`` is raised."""
        try:
            with self._client.stream(**self._options.request(call, read_s)) as response:
                if response.is_error:
                    raise error_of(response.status_code, response.read(), response.headers)
                yield response.iter_bytes()
        except httpx.TransportError as error:
            raise unreachable(self._options.url, _reason(error)) from error

    def close(self) -> None:
        self._client.close()

    def _once(self, request: dict[str, Any]) -> Response:
        try:
            response = self._client.request(**request)
        except httpx.TransportError as error:
            raise unreachable(self._options.url, _reason(error)) from error
        if response.is_error:
            raise error_of(response.status_code, response.content, response.headers)
        return Response(response.content, response.headers)


class AsyncHttp:
    """asyncio. For one event loop."""

    def __init__(self, options: Options, client: httpx.AsyncClient | None = None) -> None:
        self._options = options
        self._client = client or httpx.AsyncClient(**options.client())

    async def send(self, call: Call) -> Response:
        """As ``Http.send``."""
        async for attempt in AsyncRetrying(**self._options.tries(call)):
            with attempt:
                return await self._once(self._options.request(call))
        raise AssertionError("tenacity returns or raises")

    async def upload(self, path: Path, purpose: str) -> Response:
        with path.open("rb") as file:
            form = {"data": {"purpose": purpose}, "files": {"file": (path.name, file, "application/jsonl")}}
            request = self._options.request(Call("POST", "/v1/files", repeatable=False))
            return await self._once({**request, **form})

    @asynccontextmanager
    async def stream(self, call: Call, read_s: float | None = None) -> AsyncIterator[AsyncIterator[bytes]]:
        """As ``Http.stream``."""
        try:
            async with self._client.stream(**self._options.request(call, read_s)) as response:
                if response.is_error:
                    raise error_of(response.status_code, await response.aread(), response.headers)
                yield response.aiter_bytes()
        except httpx.TransportError as error:
            raise unreachable(self._options.url, _reason(error)) from error

    async def close(self) -> None:
        await self._client.aclose()

    async def _once(self, request: dict[str, Any]) -> Response:
        try:
            response = await self._client.request(**request)
        except httpx.TransportError as error:
            raise unreachable(self._options.url, _reason(error)) from error
        if response.is_error:
            raise error_of(response.status_code, response.content, response.headers)
        return Response(response.content, response.headers)


def _reason(error: httpx.TransportError) -> str:
    if isinstance(error, httpx.ConnectError):
        return "nothing listens there"
    if isinstance(error, httpx.TimeoutException):
        return "it didn't answer in time"
    return "the connection broke"
