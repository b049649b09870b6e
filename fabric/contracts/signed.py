"""Signatures of schedulers on what they send to workers: Ed25519, so that who can check one can't make one.

A worker holds public keys only. With an HMAC it would hold what signs, too, and whoever had taken it over could send
messages to all others of its tier. A signature is made once for a message of up to 64 jobs. Microseconds: 35 to sign,
100 to check, which the worker does.

    base64url of: id of the key (8) | signature (64)

The keys are derived from the fabric's secret, one for each secret that counts.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fabric.contracts import named_keys
from fabric.contracts.errors import ConfigError
from fabric.contracts.secret import Secrets
from fabric.contracts.terms import SCHEDULER

_ID = 8
#: Characters of a signature.
LENGTH = (_ID + 64) * 4 // 3


@dataclass(frozen=True)
class Verifier:
    """Knows by their public keys what schedulers of this fabric have signed. For any thread."""

    publics: tuple[bytes, ...]

    @cached_property
    def _keys(self) -> dict[bytes, Ed25519PublicKey]:
        return {_id(public): Ed25519PublicKey.from_public_bytes(public) for public in self.publics}

    def vouches(self, content: bytes, signature: object) -> bool:
        """Whether ``signature``, which may be anything, was made of ``content`` with one of these keys."""
        if not isinstance(signature, str) or len(signature) != LENGTH:
            return False
        try:
            raw = base64.b64decode(signature, altchars=b"-_", validate=True)
            key = self._keys.get(raw[:_ID])
            if key is None:
                return False
            key.verify(raw[_ID:], content)
        except (InvalidSignature, ValueError):
            return False
        return True


class Signer:
    """A scheduler's private keys. Signs with the first. For any thread."""

    __slots__ = ("_id", "_key", "_privates", "verifier")

    def __init__(self, privates: Sequence[bytes]) -> None:
        keys = [Ed25519PrivateKey.from_private_bytes(private) for private in privates]
        self._privates = tuple(privates)
        self._key = keys[0]
        #: For what was signed with any of the keys.
        self.verifier = Verifier(tuple(key.public_key().public_bytes_raw() for key in keys))
        self._id = _id(self.verifier.publics[0])

    def __repr__(self) -> str:
        return f"Signer({self._id.hex()})"

    @classmethod
    def of(cls, secrets: Secrets) -> Signer:
        """With a key for each secret that counts, that of the one in use first."""
        return cls(secrets.derivations("message", b""))

    def sign(self, content: bytes) -> str:
        return base64.urlsafe_b64encode(self._id + self._key.sign(content)).decode()

    def dump(self) -> str:
        """For ``FABRIC_ZONE_KEYS`` of a scheduler: ``scheduler:PRIVATE,…``."""
        return named_keys.dump((SCHEDULER, private) for private in self._privates)

    @classmethod
    def parse(cls, text: str) -> Signer:
        """
        Raises:
            ConfigError: it isn't what ``dump`` makes.
        """
        pairs = named_keys.parse(text)
        if any(name != SCHEDULER for name, _ in pairs):
            raise ConfigError(
                "FABRIC_ZONE_KEYS are keys of a worker: a scheduler has what `fabric security zone-keys scheduler` "
                "prints, and nothing else."
            )
        return cls([private for _, private in pairs])


def _id(public: bytes) -> bytes:
    return hashlib.sha256(public).digest()[:_ID]
