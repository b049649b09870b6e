"""What the store keeps of a job's text, part by part, each for those who may see it.

================  ===========================  ==========================================  =======================
part              what it holds                where it lies                               who gets it
================  ===========================  ==========================================  =======================
original          the request's body           in the job's payload                        workers of local tiers
redacted          the same, with placeholders  in the payload, where it differs            workers of the cloud tier
placeholders      placeholder -> what it hides  in the job's record, as long as that lives  gateways, the recorder
================  ===========================  ==========================================  =======================

A payload without redaction is its original part and nothing else. One with it is ``\\x01``, the length of the
original as ten digits, the original, the redacted part: ``claim.lua`` cuts it, so that a worker is handed the
part of its tier alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import orjson

from fabric.contracts.terms import Tier

_TWO_PARTS = b"\x01"
_LENGTH_DIGITS = 10
_HEAD = len(_TWO_PARTS) + _LENGTH_DIGITS


@dataclass(frozen=True, slots=True)
class Payload:
    """``redacted``: ``None`` where the cloud may see the original, if the label lets it come that far."""

    original: bytes
    redacted: bytes | None = None

    def of(self, tier: Tier | str) -> bytes:
        """The part that a worker of this tier gets."""
        return self.original if self.redacted is None or tier != "cloud" else self.redacted

    def dump(self) -> bytes:
        if self.redacted is None:
            return self.original
        return b"%b%0*d%b%b" % (_TWO_PARTS, _LENGTH_DIGITS, len(self.original), self.original, self.redacted)

    @classmethod
    def load(cls, data: bytes) -> Payload:
        if not data.startswith(_TWO_PARTS):
            return cls(data)
        middle = _HEAD + int(data[len(_TWO_PARTS) : _HEAD])
        return cls(data[_HEAD:middle], data[middle:])


def dump_placeholders(placeholders: Mapping[str, str]) -> bytes:
    """Placeholder -> what it hides, as kept in the record; empty where there are none."""
    return orjson.dumps(placeholders) if placeholders else b""


def load_placeholders(data: bytes | None) -> dict[str, str]:
    return cast("dict[str, str]", orjson.loads(data)) if data else {}
