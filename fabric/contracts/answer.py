"""An engine's answer as the OpenAI body that a caller gets: in an HTTP answer or on a batch's output line.

Engines answer without ``id`` and ``model``: those are the fabric's words. They are spliced in as bytes;
nothing is decoded on the way.
"""

from __future__ import annotations

import base64
import struct
from typing import Any

import orjson

from fabric.contracts.job import Endpoint

_ID_PREFIX = {"/v1/chat/completions": "chatcmpl-", "/v1/completions": "cmpl-", "/v1/embeddings": ""}


def answer_id(endpoint: Endpoint, job_id: str) -> str:
    return _ID_PREFIX[endpoint] + job_id.removeprefix("job_")


def whole(endpoint: Endpoint, job_id: str, model: str, created: int, result: bytes) -> bytes:
    """The engine's answer with the fabric's own fields in front. ``created``: seconds since the epoch."""
    fields: dict[str, Any] = {"model": model}
    if endpoint != "/v1/embeddings":
        fields = {"id": answer_id(endpoint, job_id), **fields}
        # A key and its colon stand together only where they are a key: quotes in text are escaped.
        if b'"created":' not in result:
            fields["created"] = created
    return _spliced(orjson.dumps(fields), result)


def _spliced(head: bytes, tail: bytes) -> bytes:
    """Two JSON objects as one."""
    return head[:-1] + b"," + tail[1:] if len(tail) > 2 else head


def packed(result: bytes) -> bytes:
    """Embeddings as base64 of little-endian 32-bit floats, where the engine gave numbers."""
    values = orjson.loads(result)
    for item in values.get("data", ()):
        numbers = item["embedding"]
        if isinstance(numbers, list):
            item["embedding"] = base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()
    return orjson.dumps(values)
