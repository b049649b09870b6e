"""Sealed content: AES-256-GCM under a data key of its own, which is wrapped with a key of the fabric's secret.

An envelope is a head and what was sealed::

    \\x02 | id of the secret (8) | salt (16) | the data key, wrapped (48) | content and tag (n + 16)

The wrapping key is derived from the secret and the salt, so it wraps one data key and no other: no counter has to be
kept and no number of envelopes is too many. What the content is *about* (its role, its id) is authenticated with the
data key: content that was moved elsewhere doesn't open. Without its head nothing opens any more: deleting the head
deletes the content, whoever holds the secret.

Pure functions over bytes. Microseconds: ``scripts/bench sealing``.
"""

from __future__ import annotations

import os
from typing import Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fabric.contracts.errors import BrokenSeal
from fabric.contracts.secret import Secrets

_ENVELOPE = b"\x02"
_ID = 8
_SALT = 16
_KEY = 32
_TAG = 16
#: Bytes of an envelope's head.
HEAD = len(_ENVELOPE) + _ID + _SALT + _KEY + _TAG
#: Bytes that sealing adds.
OVERHEAD = HEAD + _TAG
#: Each key that it is used with seals once.
_ONCE = bytes(12)

Role = Literal["file", "line", "payload", "placeholders", "piece", "answer", "message"]


def about(role: Role, *names: str) -> bytes:
    """What content belongs to. No two different ones are the same bytes."""
    return b"".join(b"%d:%b" % (len(part), part) for part in (role.encode(), *(name.encode() for name in names)))


class Seals:
    """Seals with the secret in use, opens with any that still counts. For any thread."""

    __slots__ = ("_secrets",)

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets

    def new_key(self, of: bytes) -> tuple[bytes, AESGCM]:
        """A head, and the data key in it. ``of``: from ``about``."""
        key, salt = AESGCM.generate_key(256), os.urandom(_SALT)
        wrapping = self._secrets.tag("content", salt)
        wrapped = AESGCM(wrapping.value).encrypt(_ONCE, key, of)
        return b"".join((_ENVELOPE, bytes.fromhex(wrapping.secret_id), salt, wrapped)), AESGCM(key)

    def key_in(self, head: bytes, of: bytes) -> AESGCM:
        """
        Raises:
            BrokenSeal: no head, one of something else, of another secret, or one that was altered.
        """
        if len(head) != HEAD or not head.startswith(_ENVELOPE):
            raise BrokenSeal("The content isn't sealed by this fabric.")
        secret_id, salt, wrapped = head[1 : 1 + _ID].hex(), head[1 + _ID : 1 + _ID + _SALT], head[1 + _ID + _SALT :]
        wrapping = self._secrets.derived("content", salt, secret_id)
        if wrapping is None:
            raise BrokenSeal(f"The content was sealed with secret {secret_id}, which FABRIC_SECRET doesn't hold.")
        try:
            return AESGCM(AESGCM(wrapping).decrypt(_ONCE, wrapped, of))
        except InvalidTag:
            raise BrokenSeal(_ALTERED) from None

    def seal(self, content: bytes, of: bytes) -> bytes:
        head, key = self.new_key(of)
        return head + key.encrypt(_ONCE, content, None)

    def open(self, envelope: bytes, of: bytes) -> bytes:
        """
        Raises:
            BrokenSeal: as ``key_in``, or the content was altered.
        """
        return opened(self.key_in(envelope[:HEAD], of), _ONCE, envelope[HEAD:])


def opened(key: AESGCM, nonce: bytes, content: bytes) -> bytes:
    """
    Raises:
        BrokenSeal: it was altered, or isn't what was sealed with this key and nonce.
    """
    try:
        return key.decrypt(nonce, content, None)
    except InvalidTag:
        raise BrokenSeal(_ALTERED) from None


_ALTERED = "The content was altered since it was sealed, or belongs elsewhere."
