"""One line of an input file: ``{"custom_id", "method": "POST", "url", "body"}``, checked. Pure."""

from __future__ import annotations

import logging
from typing import Any

import orjson

from fabric.contracts.catalog import Catalog
from fabric.contracts.errors import EngineError, ErrorInfo, FabricError, InvalidRequest
from fabric.contracts.key import EVERYTHING, Permissions
from fabric.contracts.request import InferenceRequest, parse_request

log = logging.getLogger(__name__)

#: As OpenAI bounds ids of this kind; it is kept for every line, in the ledger and in the store.
CUSTOM_ID_CHARS = 512
_KEYS = frozenset(("custom_id", "method", "url", "body"))


class BadLine(Exception):
    """A line that can't run. ``answered``: it holds a request, and this is the answer to it."""

    def __init__(self, error: ErrorInfo, custom_id: str | None = None, *, answered: bool = False) -> None:
        super().__init__(error.code)
        self.error = error
        self.custom_id = custom_id
        self.answered = answered


def read_line(
    raw: bytes, endpoint: str, catalog: Catalog, permissions: Permissions = EVERYTHING
) -> tuple[str, InferenceRequest]:
    """The line's ``custom_id`` and its request.

    Raises:
        BadLine: what is wrong with it. Nothing of the line is quoted but its ``custom_id``.
    """
    line = _decoded(raw)
    custom_id = _custom_id(line)
    try:
        _check_envelope(line, endpoint)
    except FabricError as error:
        raise BadLine(error.info, custom_id) from None
    try:
        request = parse_request(endpoint, line["body"], catalog, permissions)
        if request.stream:
            raise InvalidRequest(
                "A batch can't stream: leave `stream` out.", param="stream", code="unsupported_parameter"
            )
    except FabricError as error:
        raise BadLine(error.info, custom_id, answered=True) from None
    except Exception as error:  # noqa: BLE001 - a line that trips a bug must not hold up its batch
        # The text of an unforeseen error may quote the prompt: only its kind is told.
        log.error("the check of a batch line raised %s", type(error).__name__)
        unforeseen = FabricError(f"The line couldn't be checked ({type(error).__name__}).")
        raise BadLine(unforeseen.info, custom_id, answered=True) from None
    return custom_id, request


def _decoded(raw: bytes) -> dict[str, Any]:
    try:
        line = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadLine(_bad(f"The line isn't valid JSON: {error}.", None, "invalid_json_line")) from None
    if not isinstance(line, dict):
        raise BadLine(_bad("The line isn't a JSON object.", None, "invalid_json_line"))
    return line


def _custom_id(line: dict[str, Any]) -> str:
    custom_id = line.get("custom_id")
    if custom_id is None:
        raise BadLine(_bad("The line has no `custom_id`.", "custom_id", "missing_required_parameter"))
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= CUSTOM_ID_CHARS or "\0" in custom_id:
        message = f"`custom_id` must be a text of 1 to {CUSTOM_ID_CHARS} characters."
        raise BadLine(_bad(message, "custom_id", "invalid_value"))
    return custom_id


def _check_envelope(line: dict[str, Any], endpoint: str) -> None:
    if unknown := line.keys() - _KEYS:
        name = min(unknown)[:64]
        raise InvalidRequest(f"Unknown parameter: `{name}`.", param=name, code="unknown_parameter")
    for name in ("method", "url", "body"):
        if line.get(name) is None:
            raise InvalidRequest(f"The line has no `{name}`.", param=name, code="missing_required_parameter")
    if line["method"] != "POST":
        raise InvalidRequest("`method` must be `POST`.", param="method", code="invalid_value")
    if line["url"] != endpoint:
        raise InvalidRequest(f"`url` must be the batch's endpoint, `{endpoint}`.", param="url", code="url_mismatch")
    if not isinstance(line["body"], dict):
        raise InvalidRequest("`body` must be a JSON object.", param="body", code="invalid_value")


def duplicate(custom_id: str) -> BadLine:
    message = "An earlier line has the same `custom_id`."
    return BadLine(_bad(message, "custom_id", "duplicate_custom_id"), custom_id)


def too_long(limit_bytes: int) -> BadLine:
    return BadLine(_bad(f"The line has more than {limit_bytes:,} bytes.", None, "request_too_large"))


def unreadable() -> BadLine:
    """The input file no longer holds the line that was checked."""
    error = EngineError("The line can't be read from the input file any more.", code="input_file_changed")
    return BadLine(error.info)


def _bad(message: str, param: str | None, code: str) -> ErrorInfo:
    return InvalidRequest(message, param=param, code=code).info
