"""Who asks, and what they may: found out by ``keyring``, checked against what a route needs by ``access``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from fabric.contracts.key import ALL_SCOPES, EVERYTHING, Permissions, Scope

#: Where the caller of a request is kept in its ASGI scope.
CALLER = "fabric.caller"


@dataclass(frozen=True, slots=True)
class Caller:
    """``key_id``: ``None`` while the fabric is open."""

    tenant: str
    key_id: str | None = None
    scopes: frozenset[Scope] = ALL_SCOPES
    permissions: Permissions = EVERYTHING

    @property
    def actor(self) -> str:
        """As the audit trail names who did something."""
        return self.key_id or "open"


async def _identified(request: Request) -> Caller:
    caller: Caller = request.scope[CALLER]
    return caller


#: For FastAPI's routes: ``caller: Identified``. That the caller may use the route was checked before.
Identified = Annotated[Caller, Depends(_identified)]
