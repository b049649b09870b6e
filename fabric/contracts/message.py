"""The claim-check message: ids and attempt numbers, never a prompt.

A message carries a chunk of jobs for one deployment. Each job in it keeps its own claim, commit,
retry and fallback; the chunk only shares the trip through the broker.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

TASK = "fabric.run"
CHUNK_LIMIT = 64


class Chunk(BaseModel):
    """Arguments of the ``fabric.run`` task."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    deployment: str = Field(min_length=1, max_length=64)
    jobs: tuple[tuple[str, int], ...] = Field(min_length=1, max_length=CHUNK_LIMIT)
