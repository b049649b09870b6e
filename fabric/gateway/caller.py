"""Who asks. Open on loopback: everybody is the default tenant, whatever their bearer token says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from starlette.datastructures import Headers
from starlette.requests import Request


@dataclass(frozen=True, slots=True)
class Caller:
    tenant: str
    key_id: str | None = None


_EVERYBODY = Caller(tenant="default")


def identify(headers: Headers) -> Caller:
    return _EVERYBODY


async def _identified(request: Request) -> Caller:
    return identify(request.headers)


#: For FastAPI's routes: ``caller: Identified``.
Identified = Annotated[Caller, Depends(_identified)]
