"""What each route needs: which scopes lead to it. A route that isn't listed here is for ``admin`` alone."""

from __future__ import annotations

import re

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from fabric.contracts import key
from fabric.contracts.errors import PermissionDenied
from fabric.contracts.job import ENDPOINTS
from fabric.gateway.caller import CALLER, Caller
from fabric.gateway.keyring import Keyring

#: Whoever asks may read these: a load balancer and a supervisor have no key.
_FOR_ALL = ("/health/live", "/health/ready")

_Scopes = frozenset[key.Scope]
_ANY: _Scopes = key.ALL_SCOPES
INFERENCE: _Scopes = frozenset({"inference"})
_JOBS: _Scopes = frozenset({"inference", "read"})
_BATCH: _Scopes = frozenset({"batch"})
_BATCHES: _Scopes = frozenset({"batch", "read"})
_DLQ: _Scopes = frozenset({"dlq"})
_DEAD_LETTERS: _Scopes = frozenset({"dlq", "read"})
_READ: _Scopes = frozenset({"read"})
_ADMIN: _Scopes = frozenset()

#: (method, path as the route declares it) -> any of these scopes will do. ``admin`` always does.
NEEDS: dict[tuple[str, str], _Scopes] = {
    **{("POST", endpoint): INFERENCE for endpoint in ENDPOINTS},
    ("GET", "/v1/models"): _ANY,
    ("GET", "/v1/models/{model_id:path}"): _ANY,
    ("GET", "/v1/tiers"): _ANY,
    ("GET", "/v1/workers"): _READ,
    ("GET", "/v1/policies/{policy_hash}"): _READ,
    ("POST", "/v1/route"): _JOBS,
    ("POST", "/v1/jobs"): INFERENCE,
    ("GET", "/v1/jobs"): _JOBS,
    ("GET", "/v1/jobs/{job_id}"): _JOBS,
    ("GET", "/v1/jobs/{job_id}/events"): _JOBS,
    ("DELETE", "/v1/jobs/{job_id}"): INFERENCE,
    ("POST", "/v1/jobs/{job_id}/cancel"): INFERENCE,
    ("POST", "/v1/files"): _BATCH,
    ("GET", "/v1/files"): _BATCHES,
    ("GET", "/v1/files/{file_id}"): _BATCHES,
    ("GET", "/v1/files/{file_id}/content"): _BATCHES,
    ("DELETE", "/v1/files/{file_id}"): _BATCH,
    ("POST", "/v1/batches"): _BATCH,
    ("GET", "/v1/batches"): _BATCHES,
    ("GET", "/v1/batches/{batch_id}"): _BATCHES,
    ("GET", "/v1/batches/{batch_id}/report"): _BATCHES,
    ("POST", "/v1/batches/{batch_id}/cancel"): _BATCH,
    ("GET", "/v1/dead-letters"): _DEAD_LETTERS,
    ("GET", "/v1/dead-letters/{job_id}"): _DEAD_LETTERS,
    ("POST", "/v1/dead-letters/{job_id}/replay"): _DLQ,
    ("DELETE", "/v1/dead-letters/{job_id}"): _DLQ,
    ("GET", "/v1/usage"): _READ,
    ("GET", "/v1/budgets"): _READ,
    ("GET", "/v1/costs"): _READ,
    ("GET", "/v1/costs/summary"): _READ,
    ("GET", "/v1/keys"): _ADMIN,
    ("POST", "/v1/keys"): _ADMIN,
    ("GET", "/v1/keys/{key_id}"): _ADMIN,
    ("DELETE", "/v1/keys/{key_id}"): _ADMIN,
    ("POST", "/v1/keys/{key_id}/rotate"): _ADMIN,
    ("GET", "/v1/webhook-deliveries"): _ADMIN,
    ("POST", "/v1/webhook-deliveries/{delivery_id}/replay"): _ADMIN,
    ("GET", "/metrics"): _READ,
    ("GET", "/openapi.json"): _ANY,
    ("GET", "/docs"): _ANY,
}


def methods_of(path: str) -> list[str]:
    """What routes with that path take; the router itself only names those of the first one that it finds."""
    return sorted({method for method, pattern in _PATTERNS if pattern.fullmatch(path)})


def _pattern(path: str) -> re.Pattern[str]:
    """Of a path as routes declare it: `{name}` is one part, `{name:path}` is any number."""
    parts = re.split(r"\{(\w+(?::path)?)\}", path)
    return re.compile(
        "".join(("(.+)" if p.endswith(":path") else "([^/]+)") if n % 2 else re.escape(p) for n, p in enumerate(parts))
    )


_PATTERNS = [(method, _pattern(path)) for method, path in (*NEEDS, *(("GET", path) for path in _FOR_ALL))]


class Guard:
    """Finds out who asks, before anything else is done with a request."""

    def __init__(self, app: ASGIApp, keyring: Keyring) -> None:
        self._app = app
        self._keyring = keyring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in _FOR_ALL:
            scope[CALLER] = await self._keyring.caller(Headers(scope=scope))
        await self._app(scope, receive, send)


async def permitted(request: Request) -> None:
    """For every route of the application: whether its caller may use it.

    Raises:
        PermissionDenied: none of the key's scopes leads here.
    """
    path = request.scope["route"].path
    if path not in _FOR_ALL:
        require(request.scope[CALLER], NEEDS.get((request.method, path), _ADMIN))


def require(caller: Caller, scopes: frozenset[key.Scope]) -> None:
    """
    Raises:
        PermissionDenied: the caller's key has neither one of ``scopes`` nor ``admin``.
    """
    if "admin" in caller.scopes or not scopes.isdisjoint(caller.scopes):
        return
    needed = " or ".join(f"`{scope}`" for scope in key.SCOPES if scope in scopes | {"admin"})
    raise PermissionDenied(f"This needs a key with the scope {needed}.", code="insufficient_scope")
