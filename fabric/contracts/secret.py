"""The fabric's secret: what keys are hashed, rows and content sealed with. Pure; ``fabric.settings.secret`` has it."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from fabric.contracts.errors import ConfigError

#: Characters of a secret. 32 of a generator are 128 bits at the least.
SHORTEST = 32
#: Secrets at once: the one in use, and those that it took the place of.
_MOST = 4

Purpose = Literal["key", "seal", "audit", "session", "content", "fingerprint", "zone", "message"]
_PURPOSES: tuple[Purpose, ...] = ("key", "seal", "audit", "session", "content", "fingerprint", "zone", "message")


@dataclass(frozen=True, slots=True)
class _Secret:
    id: str
    #: A key of its own for each purpose, so that a tag made for one is none for another.
    keys: Mapping[Purpose, bytes] = field(repr=False)

    @classmethod
    def of(cls, text: str) -> _Secret:
        raw = text.encode()
        keys = {purpose: hmac.digest(raw, b"fabric " + purpose.encode(), "sha256") for purpose in _PURPOSES}
        return cls(hmac.digest(raw, b"fabric id", "sha256").hex()[:16], keys)


@dataclass(frozen=True, slots=True)
class Tag:
    """A message authentication code (HMAC-SHA256, 32 bytes), and the id of the secret that made it."""

    secret_id: str
    value: bytes


class Secrets:
    """The secret in use, and older ones that still count."""

    __slots__ = ("_all", "_by_id", "_current", "_key_secrets")

    def __init__(self, texts: Sequence[str]) -> None:
        """``texts``: the one in use first.

        Raises:
            ConfigError: there is none, or one is too short.
        """
        if not 1 <= len(texts) <= _MOST or any(len(text) < SHORTEST for text in texts):
            raise ConfigError(
                f"FABRIC_SECRET must hold 1 to {_MOST} secrets of at least {SHORTEST} characters each, with commas "
                "between them; `openssl rand -hex 32` makes one."
            )
        self._all = tuple(map(_Secret.of, texts))
        self._current = self._all[0]
        self._by_id = {secret.id: secret for secret in self._all}
        self._key_secrets = tuple(secret.keys["key"] for secret in self._all)

    @classmethod
    def parse(cls, text: str) -> Secrets:
        """From ``new,old``. Raises ``ConfigError``."""
        return cls([part.strip() for part in text.split(",") if part.strip()])

    @classmethod
    def passing(cls) -> Secrets:
        """One that is forgotten with the process: what it tags means nothing to others."""
        return cls([secrets.token_hex(32)])

    def __repr__(self) -> str:
        return f"Secrets({', '.join(self._by_id)})"

    @property
    def id(self) -> str:
        """Of the secret in use. Says nothing of the secret itself."""
        return self._current.id

    def __contains__(self, secret_id: object) -> bool:
        return secret_id in self._by_id

    def digest(self, key: bytes) -> bytes:
        """What is stored of a new key."""
        return hmac.digest(self._key_secrets[0], key, "sha256")

    def digests(self, key: bytes) -> list[bytes]:
        """What may be stored of ``key``: one for each secret, the one in use first."""
        return [hmac.digest(secret, key, "sha256") for secret in self._key_secrets]

    def tag(self, purpose: Purpose, data: bytes) -> Tag:
        return Tag(self._current.id, hmac.digest(self._current.keys[purpose], data, "sha256"))

    def derived(self, purpose: Purpose, salt: bytes, secret_id: str) -> bytes | None:
        """What ``tag`` made of ``salt`` with that secret, to be a key; ``None`` where it isn't held."""
        secret = self._by_id.get(secret_id)
        return None if secret is None else hmac.digest(secret.keys[purpose], salt, "sha256")

    def derivations(self, purpose: Purpose, data: bytes) -> list[bytes]:
        """What each secret makes of ``data``, to be keys: the one in use first."""
        return [hmac.digest(secret.keys[purpose], data, "sha256") for secret in self._all]

    def fingerprint(self, data: bytes) -> str:
        """By which the same data is known again, and by nobody else guessed: 32 characters.

        Made with the oldest secret that counts: while it is changed, processes that hold both and those that still
        hold one agree.
        """
        return hmac.digest(self._all[-1].keys["fingerprint"], data, "sha256").hex()[:32]

    def vouches(self, purpose: Purpose, data: bytes, tag: Tag) -> bool:
        """Whether ``tag`` was made of ``data`` by somebody who holds that secret."""
        secret = self._by_id.get(tag.secret_id)
        return secret is not None and hmac.compare_digest(hmac.digest(secret.keys[purpose], data, "sha256"), tag.value)
