"""Signatures of events, as the Standard Webhooks specification (standardwebhooks.com) has them: what OpenAI's SDK and
many others verify."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

from fabric.contracts.errors import ConfigError

_PREFIX = "whsec_"
_MIN_BYTES = 16


def key_of(secret: str, variable: str) -> bytes:
    """The key in a secret: base64 after ``whsec_``, as secrets of this kind are written.

    Raises:
        ConfigError: it is none, or too short to be one. ``variable`` is named, the secret isn't.
    """
    hint = f"Make one with: echo whsec_$(openssl rand -base64 32). It belongs into {variable}."
    if not secret.startswith(_PREFIX):
        raise ConfigError(f"The secret in {variable} doesn't begin with `{_PREFIX}`. {hint}")
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise ConfigError(f"The secret in {variable} isn't base64 after `{_PREFIX}`. {hint}") from None
    if len(key) < _MIN_BYTES:
        raise ConfigError(f"The secret in {variable} is shorter than {_MIN_BYTES} bytes. {hint}")
    return key


def headers(key: bytes, event_id: str, at_s: int, body: bytes) -> dict[str, str]:
    """``at_s``: when this try is sent, so that a receiver can refuse an old message that somebody sends again."""
    signed = b".".join((event_id.encode(), str(at_s).encode(), body))
    signature = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    return {
        "content-type": "application/json",
        "webhook-id": event_id,
        "webhook-timestamp": str(at_s),
        "webhook-signature": f"v1,{signature}",
    }
