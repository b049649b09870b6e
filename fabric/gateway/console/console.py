"""The console as an application of its own: its routes, who may see them, and what every answer of it carries."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import quote, urlencode

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fabric.contracts.errors import FabricError, NotAuthenticated
from fabric.gateway.caller import CALLER
from fabric.gateway.console import batches, costs, dead_letters, jobs, overview, policy
from fabric.gateway.console.page import Page
from fabric.gateway.console.pulse import Pulse
from fabric.gateway.console.session import Sessions, refuse_foreign
from fabric.gateway.gateway import Gateway

PATH = "/console"
_STATIC = Path(__file__).parent / "static"
_LOGIN = f"{PATH}/login"

#: Nothing from anywhere else, nothing inline, in nobody's frame.
HEADERS = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "object-src 'none'",
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


def serves(path: str) -> bool:
    return path == PATH or path.startswith(f"{PATH}/")


class Console:
    """``stopping``: whether the server is being stopped; streams end then."""

    def __init__(self, gateway: Gateway, stopping: Callable[[], bool]) -> None:
        sessions = Sessions(gateway.keyring, gateway.settings.secrets)
        page = Page(gateway, sessions, Pulse(gateway), stopping)
        routes = [
            *overview.routes(page),
            *jobs.routes(page),
            *batches.routes(page),
            *dead_letters.routes(page),
            *costs.routes(page),
            *policy.routes(page),
            Route(_LOGIN, _Login(page), methods=["GET", "POST"]),
            Route(f"{PATH}/logout", _logout(page), methods=["POST"]),
            Mount(f"{PATH}/static", _Static(directory=_STATIC)),
            Route(f"{PATH}/", _to_overview),
        ]
        inner = Starlette(routes=routes)
        inner.add_exception_handler(FabricError, page.refuse)
        inner.add_exception_handler(HTTPException, page.refuse_http)
        inner.add_exception_handler(Exception, page.refuse_unforeseen)
        self._app: ASGIApp = _Guard(inner, page)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                if "cache-control" not in headers:  # pages are of one viewer and one moment
                    headers["cache-control"] = "no-store"
            await send(message)

        await self._app(scope, receive, sending)


class _Guard:
    """Lets in who has logged in, and sends everybody else to the login; refuses forms of other sites."""

    def __init__(self, app: ASGIApp, page: Page) -> None:
        self._app = app
        self._page = page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        path = request.url.path
        answer: Response | None = None
        try:
            if request.method not in ("GET", "HEAD"):
                refuse_foreign(request)
            if path != _LOGIN and not path.startswith(f"{PATH}/static/"):
                caller = await self._page.sessions.caller(request)
                if caller is None:
                    answer = _to_login(request)
                else:
                    scope[CALLER] = caller
        except FabricError as error:
            answer = await self._page.refuse(request, error)
        await (answer or self._app)(scope, receive, send)


async def _to_overview(request: Request) -> Response:
    return RedirectResponse(PATH, status_code=308)


def _to_login(request: Request) -> Response:
    if request.headers.get("hx-request") or request.method != "GET":
        # A script can't show a login in the middle of a page: the page is loaded again, and leads there.
        return Response(status_code=401, headers={"hx-refresh": "true"})
    back = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return RedirectResponse(f"{_LOGIN}?{urlencode({'next': back})}", status_code=303)


class _Static(StaticFiles):
    """Files of the package. Their names stay and their content changes with the version, so browsers ask again."""

    def file_response(self, *args: object, **kwargs: object) -> Response:
        response: Response = super().file_response(*args, **kwargs)  # type: ignore[arg-type]
        response.headers["cache-control"] = "no-cache"
        return response


class _Login:
    """An ASGI endpoint: the form, and what it is sent to."""

    def __init__(self, page: Page) -> None:
        self._page = page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        answer = await (self._form(request) if request.method != "POST" else self._enter(request))
        await answer(scope, receive, send)

    async def _form(self, request: Request) -> Response:
        if await self._page.sessions.caller(request) is not None:
            return RedirectResponse(_inside(request.query_params.get("next", "")), status_code=303)
        return self._page.show(request, "login.html", next=_inside(request.query_params.get("next", "")))

    async def _enter(self, request: Request) -> Response:
        form = await self._page.form(request)
        back = _inside(form.get("next", ""))
        try:
            caller = await self._page.sessions.log_in(form.get("key", ""))
        except NotAuthenticated as error:
            return self._page.show(request, "login.html", status=401, next=back, problem=error.message)
        response = RedirectResponse(back, status_code=303)
        self._page.sessions.remember(response, caller, secure=request.url.scheme == "https")
        return response


def _inside(path: str) -> str:
    """Where to go after the login: a page of the console, nowhere else."""
    odd = "\\" in path or ".." in path or not path.isprintable()
    ours = path.startswith((f"{PATH}/", f"{PATH}?")) and not path.startswith(_LOGIN)
    if ours and not odd:
        return quote(path, safe="/?&=%:,~+-._")
    return PATH


def _logout(page: Page) -> Callable[[Request], Awaitable[Response]]:
    async def logout(request: Request) -> Response:
        response = RedirectResponse(_LOGIN, status_code=303)
        page.sessions.forget(response)
        return response

    return logout
