"""What a worker says of itself in each heartbeat."""

from __future__ import annotations

from dataclasses import dataclass, field

import orjson


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """``capacity`` is the number of jobs a deployment takes at once on this worker: what its engine
    runs side by side plus a few that hide the way through the broker."""

    id: str
    tier: str
    hostname: str
    pid: int
    started_ms: int
    slots: dict[str, int]  #: deployment -> requests that the engine runs at once
    capacity: dict[str, int]  #: deployment -> jobs that this worker wants to hold
    running: dict[str, int]  #: deployment -> jobs held now
    draining: bool = False
    #: Deployment -> tokens of prompt and answer that its engine was really loaded with, where it says so.
    context: dict[str, int] = field(default_factory=dict)
    #: Deployment -> ``loaded``, ``loading``, ``evicted`` (its model comes into memory when it is asked for), ``away``.
    states: dict[str, str] = field(default_factory=dict)

    def dump(self) -> bytes:
        return orjson.dumps(self)

    @classmethod
    def load(cls, data: bytes | str) -> WorkerInfo:
        return cls(**orjson.loads(data))
