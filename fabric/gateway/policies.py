"""``GET /v1/policies/{policy_hash}``: what a decision was made under."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from fabric.contracts.errors import NotFound
from fabric.gateway import describe
from fabric.gateway.caller import Identified
from fabric.gateway.gateway import Here
from fabric.gateway.parameters import NoParameters
from fabric.gateway.responses import Json
from fabric.store import policies

router = APIRouter(tags=["tiers"], responses=describe.ERRORS, default_response_class=Json)


@router.get(
    "/v1/policies/{policy_hash}",
    summary="What decisions were made under",
    responses=describe.answers("Policies, rules, privacy and places."),
)
async def show(policy_hash: str, caller: Identified, gateway: Here, _: NoParameters) -> Response:
    """The policies, rules, privacy and places that the decisions with this `policy_hash` were made under; without
    addresses and credentials. The newest 500 are kept."""
    (text,) = await gateway.ask(policies.texts([policy_hash]))
    if text is None:
        raise NotFound("Nothing is kept under this hash.")
    return Json({"object": "policy", **text})
