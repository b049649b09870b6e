"""``/v1/keys``: made, shown, rotated and revoked. For ``admin`` alone, and across tenants."""

from __future__ import annotations

import time
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import Response

from fabric.contracts.errors import NotFound, PermissionDenied
from fabric.contracts.ids import is_id
from fabric.contracts.new_key import KeyRequest, RotationRequest
from fabric.contracts.openai import Shape
from fabric.contracts.refusal import refusal
from fabric.contracts.request import json_object
from fabric.contracts.terms import TenantName
from fabric.gateway import describe
from fabric.gateway.body import read_body
from fabric.gateway.caller import Caller, Identified
from fabric.gateway.gateway import Gateway, Here
from fabric.gateway.parameters import NoParameters, bad_cursor, listed
from fabric.gateway.responses import Json
from fabric.ledger import keys
from fabric.ledger.keys import Key, NewKey, key_object

router = APIRouter(tags=["keys"], responses=describe.ERRORS, default_response_class=Json)

S = TypeVar("S", bound=Shape)

#: A new key is in no cache, and in no browser's history.
_ONCE = {"cache-control": "no-store"}


class _KeysPage(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    limit: Annotated[int, Field(ge=1, le=100, description="Keys at most.")] = 20
    cursor: Annotated[str | None, Field(description="`next_cursor` of the page before.")] = None
    tenant: Annotated[TenantName | None, Field(description="Only this tenant's.")] = None


@router.post(
    "/v1/keys",
    summary="Make a key",
    responses=describe.answers("The key, with `key`: it is shown this once.", status=201),
    status_code=201,
    openapi_extra=describe.takes("KeyRequest"),
)
async def create(request: Request, caller: Identified, gateway: Here, _: NoParameters) -> Response:
    """The first one is made with `fabric keys create`: an open fabric can't be closed over HTTP."""
    actor = _holder(caller)
    asked = _body(KeyRequest, await _read(request, gateway))
    now_ms = _now_ms()
    new = NewKey(
        tenant=asked.tenant,
        scopes=tuple(asked.scopes),
        created_ms=now_ms,
        created_by=actor,
        name=asked.name,
        permissions=asked.permissions,
        expires_ms=None if asked.expires_in_s is None else now_ms + asked.expires_in_s * 1000,
    )
    made, key = await gateway.ledger.write(keys.create, gateway.settings.secrets, new)
    return _shown_once(made, key, now_ms)


@router.get("/v1/keys", summary="List keys, newest first", responses=describe.answers("A page of keys."))
async def list_keys(caller: Identified, gateway: Here, page: Annotated[_KeysPage, Query()]) -> Response:
    """Of every tenant, or of one. A key itself is never shown again, only its beginning."""
    if page.cursor is not None and not is_id(page.cursor, "key"):
        raise bad_cursor()
    try:
        found, more = await gateway.ledger.read(keys.page, limit=page.limit, after=page.cursor, tenant=page.tenant)
    except NotFound:
        raise bad_cursor() from None
    now_ms = _now_ms()
    return Json(listed([key_object(key, now_ms) for key in found], found[-1].id if more else None))


@router.get("/v1/keys/{key_id}", summary="A key", responses=describe.answers("The key."))
async def show(key_id: str, caller: Identified, gateway: Here, _: NoParameters) -> Response:
    return Json(key_object(await gateway.ledger.read(keys.get, _known(key_id)), _now_ms()))


@router.delete("/v1/keys/{key_id}", summary="Revoke a key", responses=describe.answers("The key, revoked."))
async def revoke(key_id: str, caller: Identified, gateway: Here, _: NoParameters) -> Response:
    """For good, and within two seconds everywhere. Jobs that were accepted go on."""
    now_ms = _now_ms()
    secrets = gateway.settings.secrets
    key = await gateway.ledger.write(keys.revoke, secrets, _known(key_id), now_ms, _holder(caller))
    return Json(key_object(key, now_ms))


@router.post(
    "/v1/keys/{key_id}/rotate",
    summary="Replace a key",
    responses=describe.answers("The new key, with `key`: it is shown this once.", status=201),
    status_code=201,
    openapi_extra=describe.takes("RotationRequest"),
)
async def rotate(key_id: str, request: Request, caller: Identified, gateway: Here, _: NoParameters) -> Response:
    """The new key may do the same, for as long again. The old one ends after `overlap_s`."""
    asked = _body(RotationRequest, await _read(request, gateway))
    now_ms = _now_ms()
    made, key = await gateway.ledger.write(
        keys.rotate,
        gateway.settings.secrets,
        _known(key_id),
        now_ms,
        _holder(caller),
        overlap_ms=asked.overlap_s * 1000,
    )
    return _shown_once(made, key, now_ms)


def _holder(caller: Caller) -> str:
    """
    Raises:
        PermissionDenied: the fabric is open. Any page in a browser on this machine could ask for this.
    """
    if caller.key_id is None:
        raise PermissionDenied(
            "This fabric is open: make the first key with `fabric keys create`, on the machine that it runs on.",
            code="no_keys_yet",
        )
    return caller.key_id


async def _read(request: Request, gateway: Gateway) -> dict[str, Any]:
    return json_object(await read_body(request.receive, request.headers, gateway.settings.body_limit_bytes))


def _body(shape: type[S], raw: dict[str, Any]) -> S:
    try:
        return shape.model_validate(raw)
    except ValidationError as error:
        raise refusal(error, raw) from None


def _shown_once(made: Key, key: str, now_ms: int) -> Response:
    return Json({**key_object(made, now_ms), "key": key}, 201, _ONCE)


def _known(key_id: str) -> str:
    if not is_id(key_id, "key"):
        raise NotFound(f"There is no key {key_id[:64]!r}.", param="key_id")
    return key_id


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
