"""The way to an API over HTTP: one address, one key, one rate limit, and a clock for every answer.

``Api.post`` gives an ``Exchange``. What goes wrong on the way comes out as a named error in words of
ours, which name the deployment and never a value.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cache
from pathlib import Path
from socket import gaierror
from typing import Any
from urllib.parse import urlencode

import httpx

from fabric.contracts.catalog import Deployment
from fabric.contracts.errors import ConfigError, FabricError, RateLimited
from workers.engines.api_failures import Faults, error_event, refusal
from workers.engines.api_options import ApiOptions
from workers.engines.provider_limits import RateGate, Spent
from workers.engines.reach import Reach
from workers.engines.sse import EventParser, TooLong
from workers.engines.transport import KeepAliveTransport

#: Bytes of one event: a chunk with its log probabilities is far smaller.
_EVENT_LIMIT = 4 * 1024 * 1024
#: Bytes of an error's body that are looked at.
_ERROR_LIMIT = 64 * 1024
#: Addresses that are kept ready.
_PATHS_KEPT = 32
#: How long the end of a connection's answer may be behind the end of the stream that it carries.
_REST_S = 0.5


class Api:
    """One deployment's API."""

    def __init__(
        self, deployment: Deployment, base_url: str, options: ApiOptions, faults: Faults, gate: RateGate | None = None
    ) -> None:
        """
        Raises:
            ConfigError: ``base_url`` isn't an address, or ``ca_file`` can't be read.
        """
        self.options = options
        self.faults = faults
        self.gate = gate or RateGate()
        self._deployment = deployment.name
        self.who = f"{faults.noun} of deployment {deployment.name!r}"
        self._base = _address(deployment, base_url)
        self._query = f"?{urlencode(options.query)}" if options.query else ""
        self._transport = _transport(deployment, options, self._base.scheme == "https")
        self._reach = Reach(options.proxy or str(self._base))
        self._headers: list[tuple[bytes, bytes]] = []
        self._urls: dict[str, httpx.URL] = {}
        self.authorize({})

    @property
    def place(self) -> str:
        """Scheme, host and port: for messages."""
        return f"{self._base.scheme}://{self._base.netloc.decode()}"

    @property
    def reachable(self) -> bool:
        """Whether connections can be made, as far as is known."""
        return self._reach.there

    @property
    def in_clear(self) -> bool:
        """Whether what is sent can be read on its way to another machine."""
        return self._base.scheme == "http" and self._base.host not in ("localhost", "127.0.0.1", "::1")

    def authorize(self, headers: Mapping[str, str]) -> None:
        """Sets the headers that hold the key. They are shown nowhere."""
        fixed = {
            "host": self._base.netloc.decode(),
            "user-agent": "inference-fabric",
            "accept": "*/*",
            # A compressed stream comes late, and a small compressed body can hide a huge one.
            "accept-encoding": "identity",
            "content-type": "application/json",
        }
        together = {**fixed, **self.options.headers, **headers}
        self._headers = [(name.encode("ascii"), value.encode("ascii")) for name, value in together.items()]

    def post(
        self, path: str, content: bytes, *, stream: bool, traceparent: str | None = None
    ) -> AbstractAsyncContextManager[Exchange]:
        """Sends JSON, as ``send`` does."""
        return self.send("POST", path, content, stream=stream, traceparent=traceparent)

    @asynccontextmanager
    async def send(
        self,
        method: str,
        path: str,
        content: bytes = b"",
        *,
        content_type: str | None = None,
        stream: bool = False,
        once: bool = False,
        traceparent: str | None = None,
    ) -> AsyncIterator[Exchange]:
        """Sends when the rate limit allows it. Leaving before the answer's end closes the connection.

        ``once``: never sent a second time, as it is where a kept connection turns out to be closed.

        Raises:
            RateLimited: the limit is spent for longer than ``limit_wait_s``; nothing was sent.
            FabricError: the API refused (``api_failures``), can't be reached, is too slow, or broke off.
        """
        options = self.options
        try:
            round_ = await self.gate.enter(options.limit_wait_s)
        except Spent as spent:
            message = f"{self.who} takes no more requests for the next {spent.wait_s:.0f} s."
            raise RateLimited(message, retry_after_s=spent.wait_s) from None
        loop = asyncio.get_running_loop()
        end = loop.time() + options.total_timeout_s
        first = loop.time() + options.first_token_timeout_s if stream else end
        exchange = None
        told = False
        try:
            async with asyncio.timeout_at(min(first, end)) as clock:
                asked = self._request(method, path, content, content_type, once=once, traceparent=traceparent)
                response = await self._transport.handle_async_request(asked)
                self._reach.found()
                try:
                    exchange = Exchange(self, response, clock, end)
                    if response.status_code != 200:
                        refused = await self._refused(exchange, round_)
                        told = True
                        raise refused
                    self.gate.answered(round_, exchange.headers)
                    told = True
                    if not stream:
                        exchange.tick()
                    yield exchange
                finally:
                    await response.aclose()
        except httpx.HTTPError as error:
            raise self._fault(error) from error
        except TimeoutError:
            raise self._too_slow(exchange, loop.time() >= end) from None
        finally:
            if not told:
                self.gate.gave_up()

    async def get(self, path: str, timeout_s: float) -> tuple[int, bytes]:
        """Status and body of something small that the server says of itself.

        Raises:
            FabricError: ``unavailable``: no answer in time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                response = await self._transport.handle_async_request(self._request("GET", path, b""))
                try:
                    body = [data async for data in response.aiter_raw()]
                finally:
                    await response.aclose()
        except httpx.HTTPError as error:
            raise self._fault(error) from error
        except TimeoutError:
            raise self.faults.unavailable(f"{self.who} doesn't answer at {self.place} in {timeout_s:g} s.") from None
        return response.status_code, b"".join(body)

    async def close(self) -> None:
        await self._reach.close()
        await self._transport.aclose()

    def wrong(self, what: str) -> FabricError:
        """``what`` the API answered that isn't in its protocol."""
        return self.faults.failed(f"{self.who} answered with {what}.")

    def error_event(self, event: dict[str, Any]) -> FabricError:
        """``event``: what the API sent as an error after it had answered 200."""
        return error_event(self.faults, self._deployment, event)

    def refused(self, status: int, body: bytes) -> FabricError:
        """``status`` and ``body``: what the API answered to one request of many."""
        return refusal(self.faults, self._deployment, status, {}, body, time.time())

    def broken(self, error: FabricError) -> FabricError:
        """What ``error`` means once tokens are out: no second try may follow."""
        return self.faults.broken(f"The stream broke after its first token. {error.message}")

    def _request(
        self,
        method: str,
        path: str,
        content: bytes,
        content_type: str | None = None,
        *,
        once: bool = False,
        traceparent: str | None = None,
    ) -> httpx.Request:
        url = self._urls.get(path)
        if url is None:
            url = httpx.URL(str(self._base).rstrip("/") + _queried(path, self._query))
            if len(self._urls) < _PATHS_KEPT:  # paths may hold ids
                self._urls[path] = url
        if content_type:
            sent_as = (b"content-type", content_type.encode("ascii"))
            headers = [sent_as if name == b"content-type" else (name, value) for name, value in self._headers]
        else:
            headers = self._headers
        if traceparent:
            headers = [*headers, (b"traceparent", traceparent.encode("ascii"))]
        extensions = {"timeout": {"connect": self.options.connect_timeout_s}, "once": once}
        return httpx.Request(method, url, headers=headers, content=content, extensions=extensions)

    async def _refused(self, exchange: Exchange, round_: int) -> FabricError:
        exchange.tick()
        body = await exchange.refused()
        error = refusal(self.faults, self._deployment, exchange.status, exchange.headers, body, time.time())
        if error.retry and (isinstance(error, RateLimited) or error.retry_after_s is not None):
            self.gate.refused(round_, exchange.headers)
        else:
            self.gate.answered(round_, exchange.headers)
        return error

    def _fault(self, error: httpx.HTTPError) -> FabricError:
        """The transport's own words are left out: they may quote what came."""
        if isinstance(error, httpx.ConnectTimeout | httpx.ConnectError | httpx.ProxyError):
            self._reach.lost()
        if isinstance(error, httpx.ConnectTimeout):
            return self.faults.unavailable(
                f"{self.who} can't be reached: no connection to {self.place} in "
                f"{self.options.connect_timeout_s:g} s (connect_timeout_s)."
            )
        if isinstance(error, httpx.ConnectError | httpx.ProxyError):
            return self.faults.unavailable(f"{self.who} can't be reached at {self.place}: {_reason(error)}.")
        return self.faults.failed(
            f"{self.who} closed the connection before its answer's end, or didn't answer in HTTP "
            f"({type(error).__name__})."
        )

    def _too_slow(self, exchange: Exchange | None, at_end: bool) -> FabricError:
        options = self.options
        if at_end:
            return self.faults.timed_out(f"{self.who} took more than {options.total_timeout_s:g} s (total_timeout_s).")
        if exchange is None or not exchange.ticked:
            return self.faults.timed_out(
                f"{self.who} sent no token in {options.first_token_timeout_s:g} s (first_token_timeout_s)."
            )
        return self.faults.timed_out(
            f"{self.who} fell silent for {options.between_tokens_timeout_s:g} s (between_tokens_timeout_s)."
        )


class Exchange:
    """One answer as it comes. After a ``tick`` the next must come within ``between_tokens_timeout_s``."""

    def __init__(self, api: Api, response: httpx.Response, clock: asyncio.Timeout, end: float) -> None:
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers
        self.ticked = False
        self._api = api
        self._clock = clock
        self._end = end
        self._size = 0
        assert isinstance(response.stream, httpx.AsyncByteStream)
        self._stream = aiter(response.stream)
        self._parser = EventParser(_EVENT_LIMIT)

    def tick(self) -> None:
        """A token came: the clock starts anew."""
        self.ticked = True
        silent_until = asyncio.get_running_loop().time() + self._api.options.between_tokens_timeout_s
        self._clock.reschedule(min(self._end, silent_until))

    async def whole(self) -> bytes:
        """A JSON body, not decoded.

        Raises:
            FabricError: ``failed``: empty, too large, or of another type.
        """
        self._check("application/json")
        parts = []
        while data := await self._read():
            self.tick()
            parts.append(data)
        if not parts:
            raise self._api.wrong("an empty body")
        return b"".join(parts)

    async def events(self) -> list[bytes] | None:
        """Payloads of the next server-sent events, all that came at once; ``None`` at the end.

        Raises:
            FabricError: ``failed``: not a stream of events, or too large.
        """
        if not self._size:
            self._check("text/event-stream")
        try:
            while data := await self._read():
                if events := self._parser.feed(data):
                    return events
            return self._parser.end() or None
        except TooLong:
            raise self._api.wrong(f"an event of more than {_EVENT_LIMIT} bytes") from None

    async def lines(self) -> AsyncIterator[bytes]:
        """The lines of a file as they come, of any length in all; each at most ``max_answer_bytes`` long.

        Raises:
            FabricError: ``failed``: a line that is longer. A file that is cut is an error of ``Api.send``.
        """
        parts: list[bytes] = []
        size = 0
        while data := await anext(self._stream, b""):
            self.tick()
            *whole, rest = data.split(b"\n")
            for line in whole:
                yield b"".join((*parts, line))
                parts, size = [], 0
            parts.append(rest)
            size += len(rest)
            if size > self._api.options.max_answer_bytes:
                raise self._api.wrong(f"a line of more than {self._api.options.max_answer_bytes} bytes")
        if any(parts):
            yield b"".join(parts)

    async def rest(self) -> None:
        """Reads what follows the announced end, so that the connection can be kept; not for long."""
        try:
            async with asyncio.timeout(_REST_S):
                while await self._read():
                    pass
        except (TimeoutError, httpx.HTTPError, FabricError):
            pass  # then it is closed

    async def refused(self) -> bytes:
        """What came with a status other than 200, as much of it as matters."""
        parts: list[bytes] = []
        try:
            while sum(map(len, parts)) < _ERROR_LIMIT and (data := await anext(self._stream, b"")):
                parts.append(data)
        except httpx.HTTPError:
            pass  # the status says enough
        return b"".join(parts)

    async def _read(self) -> bytes:
        data = await anext(self._stream, b"")
        self._size += len(data)
        if self._size > self._api.options.max_answer_bytes:
            raise self._api.wrong(f"more than {self._api.options.max_answer_bytes} bytes (max_answer_bytes)")
        return data

    def _check(self, content_type: str) -> None:
        found = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if self.headers.get("content-encoding", "identity") != "identity":
            raise self._api.wrong("a compressed body that nobody asked for")
        if found != content_type:
            known = found if found in _CONTENT_TYPES else "another content type" if found else "no content type"
            raise self._api.wrong(f"{known} instead of {content_type}")


#: Those that are named in messages.
_CONTENT_TYPES = ("application/json", "text/event-stream", "text/html", "text/plain", "application/x-ndjson")


def _queried(path: str, query: str) -> str:
    """A path that may have a query of its own, with the deployment's."""
    return path + (query.replace("?", "&", 1) if "?" in path else query)


def _address(deployment: Deployment, base_url: str) -> httpx.URL:
    name = f"Deployment {deployment.name!r}: `base_url`"
    try:
        url = httpx.URL(base_url)
    except (httpx.InvalidURL, TypeError):
        raise ConfigError(f"{name} isn't an address: use https://host/v1.") from None
    if url.userinfo:
        raise ConfigError(f"{name} holds a name or password: use `api_key_env` or `api_key_file`.")
    if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment:
        raise ConfigError(f"{name} must look like https://host/v1; queries belong in `options.query`.")
    return url


def _transport(deployment: Deployment, options: ApiOptions, secure: bool) -> httpx.AsyncBaseTransport:
    tls = _tls(deployment, options.ca_file) if secure or options.proxy else None
    if options.proxy:
        return httpx.AsyncHTTPTransport(verify=tls or True, proxy=options.proxy, trust_env=False)
    return KeepAliveTransport(tls)


def _tls(deployment: Deployment, ca_file: Path | None) -> ssl.SSLContext:
    try:
        return _context(ca_file)
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(f"Deployment {deployment.name!r}: `options.ca_file` can't be used: {reason}.") from None


@cache
def _context(ca_file: Path | None) -> ssl.SSLContext:
    """One for all deployments that trust the same: the public certificates take megabytes."""
    context = ssl.create_default_context(cafile=ca_file) if ca_file else httpx.create_ssl_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _reason(error: BaseException) -> str:
    """Why there is no connection, in words that hold no values."""
    for cause in _causes(error):
        match cause:
            case ssl.SSLCertVerificationError():
                return f"its certificate isn't trusted ({cause.verify_message})"
            case ssl.SSLError():
                return f"TLS failed ({cause.reason or 'closed'})"
            case gaierror():
                return "there is no such host"
            case OSError():
                # asyncio joins the errors of several addresses into one without a number.
                return os.strerror(cause.errno).lower() if cause.errno else "nobody answers there"
            case UnicodeError():
                return "that isn't a host's name"
    return type(error).__name__


def _causes(error: BaseException | None) -> Iterable[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
