"""Webhooks: who is told that a job or a batch has ended or a budget is used up, and what they are told. Values only.

An event never holds a prompt or an answer: whoever gets it asks for these with a key of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from fabric.contracts.budget import NANO, Budget, Window
from fabric.contracts.completion import Completion
from fabric.contracts.ids import derived_id
from fabric.contracts.job import JobState
from fabric.contracts.terms import TenantName

EventType = Literal[
    "job.succeeded",
    "job.failed",
    "job.cancelled",
    "job.expired",
    "job.dead",
    "batch.completed",
    "batch.failed",
    "batch.expired",
    "batch.cancelled",
    "budget.exceeded",
]
_Url = Annotated[str, StringConstraints(pattern=r"^https?://[^\s/@]+(/\S*)?$", max_length=2048)]
_Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
_Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


def _once(events: tuple[EventType, ...]) -> tuple[EventType, ...]:
    if len(set(events)) < len(events):
        raise ValueError("an event is named twice")
    return events


class Webhook(BaseModel):
    """``secret_env``: the variable of the recorder's environment that holds the secret that events are signed with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: _Name
    url: _Url
    secret_env: _Variable
    events: Annotated[tuple[EventType, ...], AfterValidator(_once)] = Field(min_length=1)
    #: Only of these tenants; without: of all.
    tenants: tuple[TenantName, ...] | None = Field(None, min_length=1)
    #: Whether its address may be one of a private network, or this machine's.
    allow_private: bool = False

    @model_validator(mode="after")
    def _encrypted(self) -> Webhook:
        if self.url.startswith("http://") and not self.allow_private:
            raise ValueError("use https; http is for receivers in your own network, with `allow_private: true`")
        return self

    def wants(self, event: Event) -> bool:
        return event.type in self.events and (self.tenants is None or event.tenant in self.tenants)


@dataclass(frozen=True, slots=True)
class Event:
    """One end. ``id`` is the same however often it is told; ``subject``: the job's or batch's id."""

    id: str
    type: EventType
    tenant: str
    subject: str
    created_ms: int
    data: dict[str, Any]

    def body(self) -> bytes:
        """What is sent. ``created_at``: seconds since the epoch, as in OpenAI's events."""
        fields = {"id": self.id, "object": "event", "created_at": self.created_ms // 1000, "type": self.type}
        return orjson.dumps({**fields, "data": self.data})


def job_event(done: Completion) -> Event | None:
    """``None`` for what nobody waits for: lines of batches, shadows, and what a lost attempt had cost."""
    spec = done.spec
    if spec.batch_id is not None or spec.shadow_of is not None or spec.hedge_of is not None or done.late:
        return None
    usage = done.measures.usage
    data = {
        "id": spec.id,
        "object": "job",
        "state": done.state,
        "model": spec.model,
        "endpoint": spec.endpoint,
        "tenant": spec.tenant,
        "tags": spec.tags,
        "tier": done.tier,
        "deployment": done.deployment,
        "attempts": done.attempt,
        "usage": {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens},
        "cost_usd": done.measures.cost_usd + sum(attempt.measures.cost_usd for attempt in done.earlier),
        "error": _shown(done.error),
    }
    kind: Any = f"job.{JobState(done.state)}"
    # A parked job that is replayed ends again, at a later attempt.
    return Event(
        derived_id("evt", spec.id, done.state, str(done.attempt)), kind, spec.tenant, spec.id, done.finished_ms, data
    )


def _shown(error: bytes | None) -> dict[str, Any] | None:
    if not error:
        return None
    known = orjson.loads(error)
    return {name: known.get(name) for name in ("code", "fault")}


def batch_event(batch_id: str, status: str, tenant: str, ended_ms: int, counts: dict[str, int]) -> Event:
    data = {"id": batch_id, "object": "batch", "status": status, "tenant": tenant, "request_counts": counts}
    kind: Any = f"batch.{status}"
    return Event(derived_id("evt", batch_id, status), kind, tenant, batch_id, ended_ms, data)


def budget_event(budget: Budget, window: Window, used: int, at_ms: int) -> Event:
    """A soft budget's window is used up. ``used``: spent and reserved, in the budget's own unit. A budget that is no
    tenant's is told to those who hear of all tenants."""
    scale = NANO if budget.unit == "usd" else 1
    data = {
        "object": "budget",
        "name": budget.name,
        "tenant": budget.tenant,
        "window_start_ms": window.start_ms,
        "window_end_ms": window.end_ms,
        "unit": budget.unit,
        "limit": budget.limit / scale,
        "used": used / scale,
    }
    event_id = derived_id("evt", "budget", budget.name, window.name)
    return Event(event_id, "budget.exceeded", budget.tenant or "", budget.name, at_ms, data)


def wanted(hooks: Sequence[Webhook], events: Iterable[Event]) -> list[tuple[str, Event]]:
    """Who is told what: names of webhooks, and events."""
    return [(hook.name, event) for event in events for hook in hooks if hook.wants(event)]
