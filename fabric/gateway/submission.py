"""From a checked request to a job on its way in."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.datastructures import Headers

from fabric.contracts.catalog import Catalog, Privacy
from fabric.contracts.errors import InvalidRequest, ModelNotPermitted
from fabric.contracts.ids import new_id
from fabric.contracts.job import Priority
from fabric.contracts.request import InferenceRequest, parse_request
from fabric.contracts.secret import Secrets
from fabric.gateway.caller import Caller
from fabric.store.transitions import NewJob
from fabric.trail import Trail

_KEY_CHARS = 255


def parsed(
    endpoint: str, body: bytes | dict[str, Any], catalog: Catalog, caller: Caller, trail: Trail
) -> InferenceRequest:
    """As ``parse_request``, within what the caller's key permits."""
    try:
        return parse_request(endpoint, body, catalog, caller.permissions)
    except ModelNotPermitted as error:
        detail = {"reason": "permission", "model": error.model} if error.model in catalog.by_model else None
        if detail:
            trail.note("request.blocked", caller.actor, tenant=caller.tenant, detail=detail)
        raise


def new_job(
    request: InferenceRequest,
    caller: Caller,
    key: str,
    *,
    privacy: Privacy,
    priority: Priority = "interactive",
    watcher: str = "",
    accepted_under: str | None = None,
    secrets: Secrets,
    trail: Trail,
) -> NewJob:
    """``privacy`` and ``priority`` count where the request says nothing. ``accepted_under``: ``policy_hash``."""
    spec = request.spec(
        job_id=new_id("job"),
        tenant=caller.tenant,
        key_id=caller.key_id,
        default_privacy=privacy,
        default_priority=priority,
        accepted_under=accepted_under,
    )
    asked = request.options.privacy or privacy
    if spec.privacy != asked:
        detail = {"from": asked, "to": spec.privacy}
        trail.note("label.raised", caller.actor, tenant=caller.tenant, detail=detail)
    return NewJob(spec, request.payload(), watcher, key, _fingerprint(request, secrets) if key else "")


def idempotency_key(headers: Headers) -> str:
    """Empty when there is none.

    Raises:
        InvalidRequest: it is empty, too long or not plain text.
    """
    key = headers.get("idempotency-key")
    if key is None:
        return ""
    if not 1 <= len(key) <= _KEY_CHARS or not (key.isascii() and key.isprintable()):
        raise InvalidRequest(
            f"`Idempotency-Key` must have 1 to {_KEY_CHARS} printable ASCII characters.", param="Idempotency-Key"
        )
    return key


def _fingerprint(request: InferenceRequest, secrets: Secrets) -> str:
    """The same for the same request, however its JSON is spaced and ordered."""
    options = request.options.model_dump(exclude_none=True)
    said = (request.endpoint, request.model, request.body, options, request.stream, request.include_usage)
    return fingerprint(said, secrets)


def fingerprint(said: object, secrets: Secrets) -> str:
    """With a key: whoever reads the store or the ledger can't try guesses of a prompt against it."""
    return secrets.fingerprint(orjson.dumps(said, option=orjson.OPT_SORT_KEYS))
