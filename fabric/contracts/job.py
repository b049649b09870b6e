"""The job: what was asked (``JobSpec``, never changes) and what has become of it (``JobState``).

    queued ──dispatch──▶ dispatched ──claim──▶ running ──commit──▶ succeeded | failed | cancelled
      ▲                      │                    │
      └──────requeue─────────┴────────fail────────┘          queued ──▶ expired | cancelled | failed | dead
                                                  └─park──▶ dead ──replay──▶ queued

A job that is out of tries at one deployment waits in its tier's dead-letter queue for its next place: that is
``queued``, too.

``fabric/store/scripts`` holds one Lua script per arrow; ``TRANSITIONS`` is the same picture as a
table, and the store's tests check the scripts against it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

import orjson

from fabric.contracts.terms import ENDPOINTS as ENDPOINTS
from fabric.contracts.terms import PRIORITIES as PRIORITIES
from fabric.contracts.terms import Endpoint as Endpoint
from fabric.contracts.terms import Priority as Priority
from fabric.contracts.terms import Privacy, Tier

#: How long a job of each class may wait before it counts as overdue, in milliseconds: the due
#: time of a job without a deadline. Smaller goes first inside a class.
DUE_MS: dict[Priority, int] = {"interactive": 2_000, "standard": 60_000, "batch": 86_400_000}


class JobState(StrEnum):
    """Every state, in one line each."""

    QUEUED = "queued"  #: in the backlog, or waiting for its retry
    DISPATCHED = "dispatched"  #: sent to a tier queue, not yet claimed by a worker
    RUNNING = "running"  #: claimed by a worker
    SUCCEEDED = "succeeded"  #: committed with a result
    FAILED = "failed"  #: committed with an error that no further try can mend
    CANCELLED = "cancelled"  #: stopped on request
    EXPIRED = "expired"  #: its deadline passed first
    DEAD = "dead"  #: parked: out of tries or candidates; waits for replay or drop

    @property
    def ended(self) -> bool:
        return self in ENDED


ENDED = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED, JobState.DEAD})

TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset(
        {JobState.DISPATCHED, JobState.CANCELLED, JobState.EXPIRED, JobState.FAILED, JobState.DEAD}
    ),
    JobState.DISPATCHED: frozenset({JobState.RUNNING, JobState.QUEUED, JobState.CANCELLED, JobState.EXPIRED}),
    JobState.RUNNING: frozenset(
        {
            JobState.SUCCEEDED,
            JobState.FAILED,
            JobState.CANCELLED,
            JobState.EXPIRED,
            JobState.DEAD,
            JobState.QUEUED,
        }
    ),
    JobState.DEAD: frozenset({JobState.QUEUED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
    JobState.EXPIRED: frozenset(),
}


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What the caller asked, without the payload. Times are milliseconds since the epoch."""

    id: str
    endpoint: Endpoint
    model: str
    tenant: str = "default"
    key_id: str | None = None
    privacy: Privacy = "internal"
    priority: Priority = "interactive"
    policy: str | None = None
    deadline_ms: int | None = None
    max_cost_usd: float | None = None
    tags: tuple[str, ...] = ()
    stream: bool = False
    needs: tuple[str, ...] = ()  #: capabilities that a deployment must have
    prompt_tokens: int = 0  #: estimate
    max_output_tokens: int | None = None
    answers: int = 1  #: that are asked for: each may take ``max_output_tokens``
    batch_id: str | None = None
    line_no: int | None = None
    custom_id: str | None = None
    deployment: str | None = None  #: runs there or nowhere
    allowed_tiers: tuple[Tier, ...] = ()  #: by the key; empty: all
    allowed_regions: tuple[str, ...] = ()  #: by the key; empty: all
    entities: tuple[str, ...] = ()  #: names of what detectors found in the text, never the text
    raised_from: Privacy | None = None  #: the label that detectors found too weak
    redacted: bool = False  #: the part of the payload for the cloud tier holds nothing that its label hides from it
    headers: tuple[tuple[str, str], ...] = ()  #: those that the operator lets rules read
    shadow_of: str | None = None  #: the job that this one repeats, for nobody to read
    hedge_of: str | None = None  #: the job that this one is a second try of, elsewhere
    accepted_under: str | None = None  #: names the privacy rules that hold for it whatever comes later
    planned: str | None = None  #: the deployment that its batch's plan has for it, as long as it may run there
    trace: str | None = None  #: W3C `traceparent` of the span above it, if it is traced

    @property
    def lane(self) -> str:
        """The backlog lane: jobs of one class, tenant and model wait in one line."""
        return f"{self.priority}|{self.tenant}|{self.model}"

    def dump(self) -> bytes:
        """Compact JSON: what equals its default is left out."""
        return orjson.dumps(
            {name: value for name in _SPEC_NAMES if (value := getattr(self, name)) != _SPEC_DEFAULTS.get(name)}
        )

    @classmethod
    def load(cls, data: bytes | str) -> JobSpec:
        values = orjson.loads(data)
        for name in ("tags", "needs", "allowed_tiers", "allowed_regions", "entities"):
            if name in values:
                values[name] = tuple(values[name])
        if "headers" in values:
            values["headers"] = tuple(map(tuple, values["headers"]))
        return cls(**values)


_SPEC_DEFAULTS: dict[str, Any] = asdict(JobSpec(id="", endpoint="/v1/chat/completions", model=""))
_SPEC_NAMES = tuple(_SPEC_DEFAULTS)
for _required in ("id", "endpoint", "model"):
    del _SPEC_DEFAULTS[_required]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the engine reported them. ``cached_input`` is a part of ``input``, ``reasoning`` of ``output``."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False  #: counted here, because the engine didn't say

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True, slots=True)
class Measures:
    """What a worker measured of one attempt. Times in seconds, on the worker's own clock."""

    gate_s: float = 0.0  #: waiting for one of the worker's slots
    engine_s: float = 0.0
    first_token_s: float | None = None
    usage: Usage = field(default_factory=Usage)
    cost_usd: float = 0.0  #: all of it
    machine_usd: float = 0.0  #: the part of it that is time on the operator's own machines
    price_version: str = ""
    served_model: str = ""
    finish_reasons: tuple[str, ...] = ()  #: of each answer, of a job that is traced

    def dump(self) -> bytes:
        return orjson.dumps(self)

    @classmethod
    def load(cls, data: bytes | str | None) -> Measures:
        return cls.of(orjson.loads(data)) if data else cls()

    @classmethod
    def of(cls, values: dict[str, Any]) -> Measures:
        """What a newer worker measures beside it is left out: workers are updated one after the other."""
        known = {name: value for name, value in values.items() if name in cls.__dataclass_fields__}
        known["usage"] = Usage(**{k: v for k, v in values["usage"].items() if k in Usage.__dataclass_fields__})
        known["finish_reasons"] = tuple(values.get("finish_reasons", ()))
        return cls(**known)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try of a job at one deployment, as shown to users. Times: milliseconds since the epoch."""

    number: int
    deployment: str
    tier: str
    worker: str | None
    #: An end state, ``requeued``, ``exhausted`` (no further try at this deployment), or ``outrun`` by a second try.
    outcome: str
    dispatched_ms: int | None
    claimed_ms: int | None
    ended_ms: int | None
    error: dict[str, Any] | None = None
    measures: dict[str, Any] | None = None  #: as ``Measures``, where it took something
    decision: dict[str, Any] | None = None  #: that sent it there
