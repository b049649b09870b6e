"""The ASGI application: the routes, put together.

Inference requests go past FastAPI: its stack costs as much as all that a request needs otherwise.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from fabric.contracts.job import ENDPOINTS
from fabric.gateway import (
    access,
    batches,
    budgets,
    costs,
    dead_letters,
    docs,
    files,
    health,
    jobs,
    keys,
    models,
    openapi,
    policies,
    route,
    tiers,
    usage,
    webhooks,
    workers,
)
from fabric.gateway.console import Console, console
from fabric.gateway.edge import Edge, refuse_http, refuse_parameters
from fabric.gateway.gateway import Gateway
from fabric.gateway.inference import Inference
from fabric.gateway.responses import Json
from fabric.gateway.settings import GatewaySettings


def create_app(settings: GatewaySettings) -> Door:
    """
    Raises:
        ConfigError: the database URL can't be read.
    """
    gateway = Gateway(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with gateway.running():
            yield

    app = FastAPI(
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        dependencies=[Depends(access.permitted)],
    )
    app.state.gateway = gateway
    for module in (
        jobs,
        route,
        files,
        batches,
        models,
        tiers,
        workers,
        policies,
        dead_letters,
        usage,
        costs,
        budgets,
        keys,
        webhooks,
        health,
    ):
        app.include_router(module.router)
    _describe(app)
    app.add_exception_handler(HTTPException, refuse_http)
    app.add_exception_handler(RequestValidationError, refuse_parameters)
    app.add_middleware(access.Guard, keyring=gateway.keyring)
    app.add_middleware(Edge, metrics=gateway.metrics)
    inference: dict[str, ASGIApp] = {path: Edge(Inference(path, gateway), gateway.metrics, path) for path in ENDPOINTS}
    return Door(app, inference, gateway)


class Door:
    """Leads inference requests straight to where they are answered, the console's to the console, and everything
    else to ``app``."""

    def __init__(self, app: FastAPI, inference: Mapping[str, ASGIApp], gateway: Gateway) -> None:
        self._app = app
        self._inference = inference
        #: Whether the server is being stopped. Who runs it says so, and streams without an end of their own end.
        self.stopping: Callable[[], bool] = lambda: False
        self._console = Edge(Console(gateway, lambda: self.stopping()), gateway.metrics, console.PATH)
        for path, endpoint in inference.items():  # for what isn't a POST
            app.router.routes.append(Route(path, endpoint, methods=["POST"]))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        found = self._inference.get(scope["path"]) if scope["method"] == "POST" else None
        if found is None:
            found = self._console if console.serves(scope["path"]) else self._app
        await found(scope, receive, send)


def _describe(app: FastAPI) -> None:
    @cache
    def description() -> dict[str, Any]:
        return openapi.description(app)

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi_json() -> Response:
        return Json(description())

    @app.get("/docs", include_in_schema=False)
    async def docs_page() -> Response:
        headers = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}
        return HTMLResponse(docs.page(description()), headers=headers)
