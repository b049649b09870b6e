"""The texts that decisions were made under, by hash: policies, rules, privacy, and what routing knows of places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from fabric.store.command import Command, call

_KEY = "fabric:policies"
#: Texts that are kept, the newest in use. Some kilobytes each.
KEPT = 500


def keep(hash_: str, text: bytes, *, kept: int = KEPT) -> Command[bool]:
    """``text``: JSON. What is kept already stays as it is."""
    return call("keep_policy", [hash_, text, kept], bool)


def texts(hashes: Sequence[str]) -> Command[list[dict[str, Any] | None]]:
    """``None`` for one that isn't kept."""
    return Command(
        ("HMGET", _KEY, *hashes), lambda answer: [None if text is None else orjson.loads(text) for text in answer]
    )
