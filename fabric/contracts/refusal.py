"""Turns pydantic's findings into one ``InvalidRequest`` that names the field and says what to do."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from fabric.contracts.errors import InvalidRequest
from fabric.contracts.openai import UNSUPPORTED

_NAME_LIMIT = 64
#: How pydantic words "not that one" for a field in ``UNSUPPORTED``.
_REFUSALS = frozenset(("extra_forbidden", "literal_error", "none_required", "too_long"))


def refusal(error: ValidationError, body: Any, *, prefix: str = "") -> InvalidRequest:
    """The finding that lies deepest in ``body`` is the one that a user can act on. No value is quoted."""
    findings = [(_path(detail, body), detail) for detail in error.errors(include_url=False, include_input=False)]
    path, detail = max(findings, key=lambda finding: len(finding[0]))
    param = prefix + _dotted(path)
    if path and path[0] in UNSUPPORTED and detail["type"] in _REFUSALS:
        return InvalidRequest(
            f"`{param}` isn't supported here. {UNSUPPORTED[str(path[0])]}", param=param, code="unsupported_parameter"
        )
    if detail["type"] == "extra_forbidden":
        return InvalidRequest(f"Unknown parameter: `{param}`.", param=param, code="unknown_parameter")
    if detail["type"] == "missing":
        return InvalidRequest(f"Missing required parameter: `{param}`.", param=param, code="missing_required_parameter")
    if not path:
        return InvalidRequest(f"{_sentence(detail)}.", param=detail["type"] if _names_field(detail, body) else None)
    return InvalidRequest(f"Invalid `{param}`: {_sentence(detail)}.", param=param, code="invalid_value")


def _names_field(detail: ErrorDetails, body: Any) -> bool:
    """Checks of several fields together use the field's name as the error's type."""
    return isinstance(body, dict) and detail["type"] in body


def _sentence(detail: ErrorDetails) -> str:
    """pydantic's wording, but for the tags of a union: those quote the value."""
    if detail["type"] == "union_tag_invalid":
        return f"expected one of {detail['ctx']['expected_tags']}"
    if detail["type"] == "union_tag_not_found":
        return f"expected an object with {detail['ctx']['discriminator']}"
    return detail["msg"]


def _path(detail: ErrorDetails, body: Any) -> tuple[str | int, ...]:
    """The place in ``body``, without the names that pydantic puts in for the branches of a union."""
    path: list[str | int] = []
    node = body
    last = len(detail["loc"]) - 1
    for index, step in enumerate(detail["loc"]):
        if _leads_on(step, node):
            node = node[step]
        elif index != last or detail["type"] != "missing":
            continue
        path.append(step)
    if detail["type"] in ("union_tag_invalid", "union_tag_not_found"):
        path.append(detail["ctx"]["discriminator"].strip("'"))
    return tuple(path)


def _leads_on(step: str | int, node: Any) -> bool:
    if isinstance(step, int):
        return isinstance(node, list) and step < len(node)
    return isinstance(node, dict) and step in node


def _dotted(path: tuple[str | int, ...]) -> str:
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step[:_NAME_LIMIT]}" for step in path)
    return text.removeprefix(".")
