"""What ``fabric doctor`` found of one part."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """``todo``: what to do about it, where there is something to do."""

    part: str
    level: Level
    said: str
    todo: str = ""

    def asdict(self) -> dict[str, str]:
        return asdict(self)
