"""API keys: their form, their scopes, and what one permits. Pure.

A key is ``fab_``, 43 characters for 256 random bits, and 6 that check them: a mistyped key is told from an
unknown one without a look anywhere, and leaked ones can be searched for by their form.
"""

from __future__ import annotations

import re
import secrets
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Literal

import orjson

from fabric.contracts.budget import Budget
from fabric.contracts.catalog import PRIVACY_LABELS, Privacy, Tier
from fabric.contracts.limits import KeyLimits

Scope = Literal["inference", "batch", "read", "dlq", "admin"]
SCOPES: tuple[Scope, ...] = ("inference", "batch", "read", "dlq", "admin")
ALL_SCOPES: frozenset[Scope] = frozenset(SCOPES)

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_START = "fab_"
_BODY, _CHECK = 43, 6
_KEY = re.compile(rf"{_START}[0-9A-Za-z]{{{_BODY + _CHECK}}}")
#: What is kept of a key to know it by: its start, and some 48 of its 256 bits.
_SHOWN = len(_START) + 8

#: Weaker to stronger.
_RANK: dict[Privacy, int] = {label: rank for rank, label in enumerate(PRIVACY_LABELS)}


def new_key() -> str:
    body = _base62(secrets.randbits(256), _BODY)
    return _START + body + _check(body)


def well_formed(text: str) -> bool:
    """Whether ``text`` could be a key of a fabric (says nothing of whether it is one of this)."""
    if not _KEY.fullmatch(text):
        return False
    body, check = text[len(_START) : -_CHECK], text[-_CHECK:]
    return _check(body) == check


def prefix_of(key: str) -> str:
    """What may be shown of a key."""
    return key[:_SHOWN]


def _check(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), _CHECK)


def _base62(number: int, length: int) -> str:
    characters = []
    for _ in range(length):
        number, index = divmod(number, 62)
        characters.append(_ALPHABET[index])
    return "".join(reversed(characters))


@dataclass(frozen=True, slots=True)
class Permissions:
    """What may be asked for with a key. ``None``: everything that there is.

    ``regions`` bind hosted APIs, and places of the operator's own that name a region. ``privacy_floor``:
    the weakest label that its jobs get, whatever they ask for.
    """

    models: tuple[str, ...] | None = None
    tiers: tuple[Tier, ...] | None = None
    regions: tuple[str, ...] | None = None
    privacy_floor: Privacy | None = None
    limits: KeyLimits | None = None

    def budgets(self, key_id: str | None) -> tuple[Budget, ...]:
        """The key's own."""
        return self.limits.budgets(key_id) if self.limits is not None else ()

    def permits(self, model: str) -> bool:
        return self.models is None or model in self.models

    def among(self, models: Iterable[str]) -> list[str]:
        """Those that may be used, in the same order."""
        return [model for model in models if self.permits(model)]

    def label(self, asked: Privacy) -> Privacy:
        """Raised to the floor where it is below; never lowered."""
        if self.privacy_floor is None or _RANK[asked] >= _RANK[self.privacy_floor]:
            return asked
        return self.privacy_floor

    def given(self) -> dict[str, Any]:
        """Only what holds something back."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        given["limits"] = self.limits.model_dump(exclude_defaults=True) if self.limits else None
        return {name: value for name, value in given.items() if value is not None}

    def dump(self) -> str | None:
        """JSON; ``None`` where nothing is held back."""
        given = self.given()
        return orjson.dumps(given).decode() if given else None

    @classmethod
    def load(cls, text: str | None) -> Permissions:
        if not text:
            return EVERYTHING
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in orjson.loads(text).items()
        }
        if "limits" in values:
            values["limits"] = KeyLimits.model_validate(values["limits"])
        return cls(**values)


EVERYTHING = Permissions()
