"""From a checked request to a job on its way in."""

from __future__ import annotations

import hashlib

import orjson
from starlette.datastructures import Headers

from fabric.contracts.catalog import Privacy
from fabric.contracts.errors import InvalidRequest
from fabric.contracts.ids import new_id
from fabric.contracts.job import Priority
from fabric.contracts.request import InferenceRequest
from fabric.gateway.caller import Caller
from fabric.store.transitions import NewJob

_KEY_CHARS = 255


def new_job(
    request: InferenceRequest,
    caller: Caller,
    key: str,
    *,
    privacy: Privacy,
    priority: Priority = "interactive",
    watcher: str = "",
) -> NewJob:
    """``privacy`` and ``priority`` count where the request says nothing."""
    spec = request.spec(
        job_id=new_id("job"),
        tenant=caller.tenant,
        key_id=caller.key_id,
        default_privacy=privacy,
        default_priority=priority,
    )
    return NewJob(spec, request.payload(), watcher, key, _fingerprint(request) if key else "")


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


def _fingerprint(request: InferenceRequest) -> str:
    """The same for the same request, however its JSON is spaced and ordered."""
    options = request.options.model_dump(exclude_none=True)
    said = (request.endpoint, request.model, request.body, options, request.stream, request.include_usage)
    return fingerprint(said)


def fingerprint(said: object) -> str:
    return hashlib.blake2b(orjson.dumps(said, option=orjson.OPT_SORT_KEYS), digest_size=16).hexdigest()
