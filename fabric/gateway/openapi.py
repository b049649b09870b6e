"""``/openapi.json``: FastAPI's description of its routes, and ours of those that it doesn't see."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from fabric.contracts.new_key import KeyRequest, RotationRequest
from fabric.contracts.openai import ChatCompletionRequest, CompletionRequest, EmbeddingRequest
from fabric.gateway import describe
from fabric.gateway.batches import BatchRequest
from fabric.gateway.dead_letters import ReplayRequest
from fabric.gateway.jobs import JobRequest
from fabric.gateway.route import ROUTED

_DESCRIPTION = (
    "One door to every place a model can run. The OpenAI routes take what OpenAI's clients send; an unknown "
    "field is an error, not ignored. What OpenAI has no word for goes into `fabric`."
)
_MODELS: tuple[type[BaseModel], ...] = (
    ChatCompletionRequest,
    CompletionRequest,
    EmbeddingRequest,
    JobRequest,
    BatchRequest,
    ReplayRequest,
    KeyRequest,
    RotationRequest,
)
_INFERENCE: dict[str, tuple[type[BaseModel], str, bool]] = {
    "/v1/chat/completions": (ChatCompletionRequest, "Answer a conversation", True),
    "/v1/completions": (CompletionRequest, "Continue a text", True),
    "/v1/embeddings": (EmbeddingRequest, "Embed texts", False),
}
_UPLOAD = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "contentMediaType": "application/octet-stream"},
        "purpose": {"type": "string", "const": "batch"},
    },
}
#: Every answer of a job says where it came from.
_HEADERS = {
    f"x-fabric-{name}": {"description": text, "schema": {"type": kind}}
    for name, text, kind in (
        ("job-id", "The job.", "string"),
        ("tier", "The tier that answered.", "string"),
        ("deployment", "The deployment that answered.", "string"),
        ("attempts", "Attempts that it took.", "integer"),
        ("queue-ms", "Milliseconds from acceptance to the start of the last attempt.", "integer"),
        ("fault", "Of errors: whose fault it is (caller, policy, engine, provider or fabric).", "string"),
        ("cost-usd", "US dollars. Not on streams: they start before it is known.", "number"),
    )
}


def description(app: FastAPI) -> dict[str, Any]:
    """OpenAPI 3.1."""
    built: dict[str, Any] = get_openapi(
        title="Inference fabric", version=version("inference-fabric"), description=_DESCRIPTION, routes=app.routes
    )
    inference = {path: {"post": _inference(path, *told)} for path, told in _INFERENCE.items()}
    _, schemas = models_json_schema(
        [(model, "validation") for model in _MODELS], ref_template="#/components/schemas/{model}"
    )
    built.setdefault("components", {})["securitySchemes"] = describe.SECURITY
    components = built["components"].setdefault("schemas", {})
    components.update(schemas["$defs"])
    components.update(describe.SCHEMAS)
    components["FileUpload"] = _UPLOAD
    components["RouteRequest"] = {"oneOf": [describe.ref(model.__name__) for model in ROUTED]}
    return {**built, "security": describe.SECURED, "paths": {**inference, **built["paths"]}}


def _inference(path: str, model: type[BaseModel], summary: str, streams: bool) -> dict[str, Any]:
    content = describe.json_content({"type": "object"})
    if streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    return {
        "tags": ["inference"],
        "summary": summary,
        "operationId": path.removeprefix("/v1/").replace("/", "_"),
        **describe.takes(model.__name__, idempotent=True),
        "responses": {
            "200": {"description": "The answer, in OpenAI's shape.", "headers": _HEADERS, "content": content},
            "default": describe.ERRORS["default"],
        },
    }
