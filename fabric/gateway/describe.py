"""What routes say of themselves in ``/openapi.json`` beyond what FastAPI sees in their signatures."""

from __future__ import annotations

from typing import Any

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string", "description": "What happened and what to do."},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "The field that is wrong."},
                "code": {"type": ["string", "null"], "description": "For programs; it doesn't change."},
            },
        }
    },
}
#: Schemas that are not pydantic models.
SCHEMAS: dict[str, Any] = {"Error": _ERROR}

SECURITY: dict[str, Any] = {
    "key": {"type": "http", "scheme": "bearer", "description": "Once there are keys; `fabric keys create` makes one."}
}
SECURED: list[dict[str, list[str]]] = [{"key": []}]
#: Of a route that anybody may ask, keys or not.
FOR_ALL: dict[str, Any] = {"security": []}

IDEMPOTENCY_KEY: dict[str, Any] = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "The same key with the same request means the same job or batch, for a day.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
}
LAST_EVENT_ID: dict[str, Any] = {
    "name": "Last-Event-ID",
    "in": "header",
    "required": False,
    "description": "The id of the last event that the reader has.",
    "schema": {"type": "integer", "minimum": 0},
}


def ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def json_content(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


ERRORS: dict[int | str, dict[str, Any]] = {
    "default": {"description": "What went wrong, in OpenAI's shape.", "content": json_content(ref("Error"))}
}


def answers(description: str, media_type: str = "application/json", status: int = 200) -> dict[int | str, Any]:
    """The answer of a route that isn't described by a model."""
    schema = {"type": "object"} if media_type == "application/json" else {"type": "string"}
    return {status: {"description": description, "content": {media_type: {"schema": schema}}}}


def takes(name: str, *, idempotent: bool = False, required: bool = True) -> dict[str, Any]:
    """A route that reads its JSON body itself. ``name``: of the body's schema."""
    extra: dict[str, Any] = {"requestBody": {"required": required, "content": json_content(ref(name))}}
    if idempotent:
        extra["parameters"] = [IDEMPOTENCY_KEY]
    return extra
