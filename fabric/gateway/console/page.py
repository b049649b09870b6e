"""What every page of the console is made with: templates, forms, refusals, and the stream that keeps it live."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse

from fabric.contracts.errors import FabricError, InvalidRequest, TooLarge, Unavailable
from fabric.gateway.caller import CALLER, Caller
from fabric.gateway.console import words
from fabric.gateway.console.pulse import BEAT_S, Pulse
from fabric.gateway.console.session import Sessions, may
from fabric.gateway.gateway import Gateway
from fabric.gateway.sse import KEEP_ALIVE

_TEMPLATES = Path(__file__).parent / "templates"
#: Forms are short: ids, a few choices, a key.
_FORM_BYTES = 65_536
#: Beats without news after which a stream says that it is still there.
_QUIET_BEATS = 15
_STREAM = {"cache-control": "no-cache", "x-accel-buffering": "no"}

#: (path, name, route of the API that shows the same): the pages, in the order of the menu.
PAGES = (
    ("/console", "Overview", ("GET", "/v1/tiers")),
    ("/console/jobs", "Jobs", ("GET", "/v1/jobs")),
    ("/console/batches", "Batches", ("GET", "/v1/batches")),
    ("/console/dead-letters", "Dead letters", ("GET", "/v1/dead-letters")),
    ("/console/costs", "Costs", ("GET", "/v1/costs")),
    ("/console/policy", "Policy", ("POST", "/v1/route")),
)

Fragment = Callable[[], Awaitable[str]]


class Form(dict[str, str]):
    """The fields of a form, the last one of each name; ``all``: every pair."""

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs

    def every(self, name: str) -> list[str]:
        return [value for key, value in self.pairs if key == name]


class Page:
    def __init__(self, gateway: Gateway, sessions: Sessions, pulse: Pulse, stopping: Callable[[], bool]) -> None:
        self.gateway = gateway
        self.sessions = sessions
        self.pulse = pulse
        self._stopping = stopping
        self._templates = Environment(
            loader=FileSystemLoader(_TEMPLATES),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= words.FILTERS

    def show(self, request: Request, template: str, *, status: int = 200, **values: Any) -> Response:
        caller: Caller | None = request.scope.get(CALLER)
        menu = [(path, name) for path, name, route in PAGES if caller is not None and may(caller, *route)]
        shared = {
            "menu": menu,
            "here": _section(request.url.path),
            "caller": caller,
            "notice": _NOTICES.get(request.query_params.get("done", "")),
        }
        response = HTMLResponse(self._templates.get_template(template).render(shared | values), status)
        if caller is not None:
            self.sessions.remember(response, caller, secure=request.url.scheme == "https")
        return response

    def piece(self, template: str, **values: Any) -> str:
        """A part of a page, for its stream or for htmx."""
        return self._templates.get_template(template).render(values)

    async def form(self, request: Request) -> Form:
        """
        Raises:
            InvalidRequest: it isn't one.
            TooLarge: more than any form of the console.
        """
        body = b""
        async for piece in request.stream():
            body += piece
            if len(body) > _FORM_BYTES:
                raise TooLarge(f"The form has more than {_FORM_BYTES:,} bytes.")
        try:
            return Form(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=1_000))
        except ValueError:
            raise InvalidRequest("The form can't be read.") from None

    def done(self, path: str, notice: str) -> Response:
        """After a change: to a page that may be loaded again without repeating it."""
        return RedirectResponse(f"{path}{'&' if '?' in path else '?'}done={notice}", status_code=303)

    def live(self, caller: Caller, fragment: Fragment) -> Response:
        """A stream of one part of a page: whenever it has changed, once a beat at most."""
        return StreamingResponse(self._beats(caller, fragment), media_type="text/event-stream", headers=_STREAM)

    async def _beats(self, caller: Caller, fragment: Fragment) -> AsyncIterator[bytes]:
        shown, quiet = b"", 0
        yield b"retry: 2000\n\n"
        while True:
            # On the whole beat: all streams ask at once, and one read answers them all. The page itself is fresh.
            await asyncio.sleep(BEAT_S - time.monotonic() % BEAT_S)
            if self._stopping() or not self.sessions.still(caller):
                return
            try:
                said = await fragment()
            except Unavailable:
                said = ""  # the page keeps what it shows
            except FabricError:
                return
            mark = hashlib.blake2b(said.encode(), digest_size=16).digest()
            if said and mark != shown:
                shown, quiet = mark, 0
                yield b"".join(b"data: %b\n" % line.encode() for line in said.splitlines()) + b"\n"
            elif (quiet := quiet + 1) % _QUIET_BEATS == 0:
                yield KEEP_ALIVE

    async def refuse(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, FabricError)
        self.gateway.metrics.errors.labels(error.info.fault).inc()
        return self._problem(request, error.info.status, error.info.message)

    async def refuse_http(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return self._problem(request, error.status_code, "There is no such page." if error.status_code == 404 else "")

    async def refuse_unforeseen(self, request: Request, error: Exception) -> Response:
        """What was raised goes on to the edge, which writes down what may be written down."""
        return self._problem(request, 500, "Something went wrong inside the fabric. Its log says more.")

    def _problem(self, request: Request, status: int, message: str) -> Response:
        if request.headers.get("hx-request"):
            return HTMLResponse(self.piece("problem_piece.html", message=message), status)
        return self.show(request, "problem.html", status=status, code=status, message=message)


_NOTICES: Mapping[str, str] = {
    "replayed": "Replayed: the job waits again.",
    "replayed-some": "Replayed: the jobs wait again. What wasn't parked any more stays as it is.",
    "dropped": "Dropped for good.",
    "cancelled": "Its end was asked for.",
    "none": "Nothing was selected.",
}


def _section(path: str) -> str:
    """The page of the menu that a path belongs to."""
    parts = path.split("/")
    return f"/console/{parts[2]}" if len(parts) > 2 and parts[2] else "/console"
