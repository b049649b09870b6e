"""What is left after a run: what clients were told, what the ledger has, what the engines wrote down. Values only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

#: States of the ledger's rows that are a job's end.
ENDS = frozenset(("succeeded", "failed", "cancelled", "expired", "dead"))


@dataclass(frozen=True, slots=True)
class Told:
    """What a client was told of one job: that it was accepted, and perhaps its answer.

    ``text``: of a whole answer. ``label``: that it was asked under. ``line``: its batch and line number.
    """

    job_id: str
    ask: int
    label: str
    text: str | None = None
    state: str | None = None
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One attempt in the ledger. Times: milliseconds since the epoch on the store's clock."""

    job_id: str
    attempt: int
    state: str
    requests: int
    privacy: str
    tier: str | None
    deployment: str | None
    worker: str | None
    error_code: str | None
    input_tokens: int
    output_tokens: int
    cost_usd: float
    machine_usd: float
    estimated: int
    accepted_ms: int
    claimed_ms: int | None
    finished_ms: int
    batch_id: str | None = None
    line_no: int | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """One answer that a played engine began. ``engine``: ``cloud``, ``home`` or ``provider`` (its batch API);
    tokens: 0 unless it was finished."""

    engine: str
    generation: str
    ask: int
    label: str
    answered: bool = False
    prompt: int = 0
    completion: int = 0


@dataclass(frozen=True, slots=True)
class Probe:
    """One look at the door while the store or the broker was away. ``status`` 0: no answer within ``seconds``."""

    path: str
    status: int
    seconds: float
    retry_after: bool = False


@dataclass(frozen=True, slots=True)
class Death:
    """A worker that was killed. ``at_ms``: on the clock of this machine, which is the store's."""

    worker: str
    at_ms: int
    alone: bool


@dataclass(frozen=True, slots=True)
class Event:
    """What a receiver of webhooks was sent. ``signed``: the signature is that of its webhook's secret. ``leaks``: it
    holds what was asked or answered. ``kept``: it was answered with a 2xx."""

    hook: str
    id: str
    type: str
    subject: str
    signed: bool
    leaks: bool
    kept: bool


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident bytes of one process, from its start to its end, in order."""

    process: str
    pid: int
    seconds: float
    bytes: Sequence[int]


@dataclass(frozen=True, slots=True)
class Kept:
    """What the store keeps of jobs that have ended. ``lasting``: keys of theirs that never expire. ``longest_s``: until
    the last record goes. ``bytes``: its memory, more than at the start."""

    lasting: int = 0
    longest_s: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Evidence:
    """``lines``: (batch, line number) -> what was asked. ``batches``: id -> custom ids of its output and error files.
    ``ends``: job -> final events in its log, in order. ``replayed``: jobs that were parked and replayed.
    ``second_tries``: begun, and of them those that became the answer. ``events``: what the receiver of webhooks got.
    ``left``: what the store still holds of jobs that should all have ended. ``backs``: when a killed broker could be
    reached again. ``outages``: when the store or the broker was taken away, however that was done. ``holes``: that full
    disks left in the store's file. ``budgets``: name -> (reserved, spent) in billionths of a US dollar. ``exits``:
    processes that ended by themselves. ``odd``: answers that no client should get.
    """

    told: Sequence[Told] = ()
    rows: Sequence[Row] = ()
    generations: Sequence[Generation] = ()
    lines: Mapping[tuple[str, int], int] = field(default_factory=dict)
    batches: Mapping[str, Sequence[str]] = field(default_factory=dict)
    ends: Mapping[str, Sequence[str]] = field(default_factory=dict)
    replayed: frozenset[str] = frozenset()
    second_tries: tuple[int, int] = (0, 0)
    events: Sequence[Event] = ()
    left: Mapping[str, int] = field(default_factory=dict)
    budgets: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    probes: Sequence[Probe] = ()
    deaths: Sequence[Death] = ()
    backs: Sequence[int] = ()
    outages: Sequence[int] = ()
    kept: Kept = Kept()
    holes: int = 0
    memory: Sequence[Memory] = ()
    exits: Sequence[str] = ()
    odd: Sequence[str] = ()

    @property
    def twins(self) -> frozenset[str]:
        """Jobs that were second tries of others, and didn't win."""
        told = {told.job_id for told in self.told}
        counted = {row.job_id for row in self.rows if row.requests}
        return frozenset(row.job_id for row in self.rows if row.batch_id is None) - told - counted
