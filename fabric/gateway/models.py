"""``/v1/models``: the logical names of the catalogue."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from fabric.contracts.errors import ModelNotFound
from fabric.gateway import describe
from fabric.gateway.caller import Identified
from fabric.gateway.gateway import Gateway, Here
from fabric.gateway.parameters import NoParameters, listed
from fabric.gateway.responses import Json

router = APIRouter(tags=["models"], responses=describe.ERRORS, default_response_class=Json)


@router.get("/v1/models", summary="List models", responses=describe.answers("All models."))
async def list_models(caller: Identified, gateway: Here, _: NoParameters) -> Response:
    return Json(listed([_model(name, gateway) for name in caller.permissions.among(gateway.catalog.by_model)]))


@router.get("/v1/models/{model_id:path}", summary="A model", responses=describe.answers("The model."))
async def show(model_id: str, caller: Identified, gateway: Here, _: NoParameters) -> Response:
    if model_id not in gateway.catalog.by_model or not caller.permissions.permits(model_id):
        raise ModelNotFound("There is no such model. GET /v1/models lists those that there are.", param="model")
    return Json(_model(model_id, gateway))


def _model(name: str, gateway: Gateway) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": gateway.started_s, "owned_by": "fabric"}
