"""Every transition of a job, as a command. The rules are in ``scripts/<name>.lua``.

All take and return many jobs at once: one round trip per chunk, not per job. Job ids are ``str``;
attempt numbers start at 1 with the first dispatch.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import orjson

from fabric.contracts.breaker import End, OpenBreaker, dump
from fabric.contracts.errors import (
    Cancelled,
    DeadlineExceeded,
    EngineError,
    EngineUnavailable,
    ErrorInfo,
    StreamBroken,
    WorkerLost,
)
from fabric.contracts.failures import NEW, Chain, end_for_breaker
from fabric.contracts.job import DUE_MS, JobSpec, JobState, Priority
from fabric.contracts.limits import Levels, LimitKind
from fabric.contracts.worker import WorkerInfo
from fabric.store.command import Argument, Command, call

#: How long the record of an ended job stays readable once the ledger has it. Longer costs memory.
RECORD_TTL_S = 3_600
#: How long it waits for a ledger that is away, before a batch line would have to run again.
UNRECORDED_TTL_S = 86_400
#: How long the same Idempotency-Key means the same job.
IDEMPOTENCY_S = 86_400
#: The answer of ``dispatch`` for a job whose deployment is full.
FULL = -1
#: Live jobs that the store accepts; beyond it the gateway answers 429. Bounds Redis' memory.
LIVE_LIMIT = 200_000
#: Of deployments that nobody says more of.
_BREAKERS = dump(())
_DEAD_QUEUE = "dlq:"


def _dump(error: ErrorInfo) -> bytes:
    return orjson.dumps(error)


_WORKER_LOST = _dump(WorkerLost("The worker that ran this job died; the job runs again.").info)
_POISON = _dump(
    WorkerLost(
        "Several workers died while they ran this job, so it was parked. Look at the workers' logs, "
        "then replay or drop it.",
        code="poison_job",
    ).info
)
_BROKEN = _dump(
    StreamBroken("The stream broke after its first token; send the request again to get a whole answer.").info
)
_CANCELLED = _dump(Cancelled("The job was cancelled.").info)
_EXPIRED = _dump(DeadlineExceeded("The deadline passed before the job was finished.").info)
_UNCLAIMED = _dump(
    EngineUnavailable("No worker took the job from its queue in time; it was queued again.", code="unclaimed").info
)
_DECLINED = _dump(
    EngineUnavailable("The worker had no room for the job or was stopping; it was queued again.", code="declined").info
)
_UNSENT = _dump(EngineUnavailable("The broker didn't take the message; the job was queued again.", code="unsent").info)
_UNDELIVERED = _dump(
    EngineUnavailable("The broker gave up the job's message; the job was queued again.", code="undelivered").info
)
_FORGOTTEN = _dump(
    EngineError("The worker never got the job that it claimed; the job was queued again.", code="forgotten").info
)
_HANDED_BACK = _dump(EngineError("The worker was stopped and handed the job back.", code="handed_back").info)


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job on its way in. ``watcher`` is the channel that gets its events, if any.

    ``placeholders``: of its redaction, for the record. ``blocked``: its label keeps it away from a deployment.
    ``charges``: what to reserve of budgets (``fabric.routing.budgets``); ``limits``: what to take of rate limits
    (``fabric.routing.limits``).
    """

    spec: JobSpec
    payload: bytes
    watcher: str = ""
    idempotency_key: str = ""
    fingerprint: str = ""
    placeholders: bytes = b""
    blocked: bool = False
    charges: str = ""
    limits: str = ""


@dataclass(frozen=True, slots=True)
class Accepted:
    """``exists``: the idempotency key or the id is known, ``job_id`` is the earlier job's. ``over``: it could go
    beyond ``budget``, whose window ends at ``budget_end_ms`` (0: never); ``unready``: that isn't open yet.
    ``limited``: by ``limited_by``. ``levels``: what is left of rate limits, where there are any."""

    verdict: Literal["accepted", "exists", "conflict", "full", "over", "unready", "limited"]
    job_id: str
    budget: str = ""
    budget_end_ms: int = 0
    limited_by: LimitedBy | None = None
    levels: Levels | None = None


@dataclass(frozen=True, slots=True)
class LimitedBy:
    """``owner``: as in ``NewJob.limits``. ``wait_ms``: until there is room as things are; of jobs and batch tokens
    nobody knows that."""

    owner: str
    kind: LimitKind
    limit: int
    wait_ms: int


def accept(jobs: Iterable[NewJob], *, limit: int = LIVE_LIMIT) -> Command[list[Accepted]]:
    arguments: list[Argument] = [limit, IDEMPOTENCY_S]
    for job in jobs:
        spec = job.spec
        arguments += (
            spec.id,
            spec.lane,
            DUE_MS[spec.priority],
            "" if spec.deadline_ms is None else spec.deadline_ms,
            "1" if spec.batch_id or spec.hedge_of else "",
            "1" if spec.stream else "",
            spec.tenant,
            job.watcher,
            job.idempotency_key,
            job.fingerprint,
            spec.dump(),
            job.payload,
            job.placeholders,
            spec.privacy if job.blocked else "",
            job.charges,
            job.limits,
        )
    return call("accept", arguments, _accepted)


def _accepted(answer: list[list[bytes]]) -> list[Accepted]:
    return [_one_accepted(verdict.decode(), said.decode(), _levels(levels)) for verdict, said, levels in answer]


def _one_accepted(verdict: Any, said: str, levels: Levels | None) -> Accepted:
    if verdict == "limited":
        owner, kind, limit, wait_ms = said.split(" ")
        by = LimitedBy(owner, cast(LimitKind, kind), int(limit), int(wait_ms))
        return Accepted(verdict, "", limited_by=by, levels=levels)
    if verdict not in ("over", "unready"):
        return Accepted(verdict, said, levels=levels)
    name, _, end = said.partition(" ")
    return Accepted(verdict, "", name, int(end), levels=levels)


def _levels(text: bytes) -> Levels | None:
    if not text:
        return None
    numbers = [None if word == b"-" else int(word) for word in text.split(b" ")]
    requests, tokens = cast("list[tuple[int, int, int]]", [tuple(numbers[:3]), tuple(numbers[3:])])
    return Levels(requests if requests[0] else None, tokens if tokens[0] else None)


@dataclass(frozen=True, slots=True)
class Lane:
    """A line of waiting jobs of one class, tenant and model. ``due_ms``: its head's due time.

    ``places`` is what ``side_lane`` was told of the places that its jobs wait for; ``""`` for the main lane.
    """

    name: str
    priority: Priority
    tenant: str
    model: str
    length: int
    due_ms: int
    places: str = ""


@dataclass(frozen=True, slots=True)
class Room:
    """What waits, what is busy, who is there to work, and what is sick. ``busy``: deployment -> jobs."""

    lanes: tuple[Lane, ...]
    busy: dict[str, int]
    workers: tuple[WorkerInfo, ...]
    #: Tier -> jobs in its dead-letter queue, that wait for their next place.
    dead: dict[str, int] = field(default_factory=dict)
    #: Deployment -> its breaker, of those that aren't closed.
    breakers: dict[str, OpenBreaker] = field(default_factory=dict)

    @property
    def filled(self) -> set[str]:
        """Models of which jobs wait that let interactive ones go first."""
        return {lane.model for lane in self.lanes if lane.priority != "interactive"}


def room(*, alive_ms: int = 5_000) -> Command[Room]:
    return call("room", [alive_ms], _room)


def _room(answer: list[Any]) -> Room:
    lanes = []
    for name, length, due in answer[0]:
        text = name.decode()
        priority, tenant, rest = text.split("|", 2)
        model, _, places = rest.partition(" ")
        lanes.append(Lane(text, priority, tenant, model, length, int(float(due)), places))
    return Room(
        tuple(lanes),
        {deployment.decode(): jobs for deployment, jobs in answer[1]},
        tuple(WorkerInfo.load(info) for info in answer[2]),
        {tier.decode(): jobs for tier, jobs in answer[3]},
        {
            name.decode(): OpenBreaker(state != b"open", state == b"probing", int(until), why.decode())
            for name, state, until, why in answer[4]
        },
    )


def dead_queue(tier: str) -> str:
    """A tier's dead-letter queue, for ``take``: jobs that are out of tries where they were."""
    return f"{_DEAD_QUEUE}{tier}"


@dataclass(frozen=True, slots=True)
class Taken:
    """A job in a scheduler's hand. ``history``: its earlier attempts, as JSON objects joined by commas.

    ``error``: JSON; of the attempt that ended its tries at a deployment, as long as it has had no other since.
    """

    lane: str
    spec: JobSpec
    attempts: int
    history: bytes
    now_ms: int
    chain: Chain = NEW
    error: bytes = b""


def take(lanes: Iterable[tuple[str, int]], *, lease_ms: int = 5_000) -> Command[list[Taken]]:
    arguments: list[Argument] = [lease_ms]
    for lane, count in lanes:
        arguments += (lane, count)
    return call("take", arguments, _taken)


def _taken(answer: list[list[bytes]]) -> list[Taken]:
    return [
        Taken(lane.decode(), JobSpec.load(spec), int(attempts), history, int(now), _chain(exhausted, spent), error)
        for lane, spec, attempts, history, now, exhausted, spent, error in answer
    ]


def _chain(exhausted: bytes, spent: bytes) -> Chain:
    if not exhausted and spent == b"0":
        return NEW
    pairs = [tuple(entry.split(" ", 1)) for entry in exhausted.decode().split(",") if entry]
    return Chain(tuple(pairs), float(spent))  # type: ignore[arg-type]  # the script writes two words each


def put_back(job_ids: Iterable[str]) -> Command[int]:
    """The jobs wait where they came from."""
    return put_aside((job_id, "") for job_id in job_ids)


def put_aside(jobs: Iterable[tuple[str, str]]) -> Command[int]:
    """Pairs of a job's id and the lane to wait in: a side lane holds up nobody who waits for other places."""
    arguments: list[Argument] = []
    for job_id, lane in jobs:
        arguments += (job_id, lane)
    return call("put_back", arguments, int)


def side_lane(spec: JobSpec, places: str) -> str:
    """The lane of jobs like this one that wait for these places."""
    return f"{spec.lane} {places}"


@dataclass(frozen=True, slots=True)
class Dispatch:
    """``limit``: how many jobs the deployment may hold, this one included; ``None`` for any number."""

    job_id: str
    deployment: str
    tier: str
    decision: bytes
    limit: int | None = None


def dispatch(jobs: Sequence[Dispatch], *, claim_within_ms: int = 5_000) -> Command[list[int]]:
    """Answers the attempt number of each job; 0 where it is no longer there to be sent, ``FULL`` where its
    deployment has no room any more and the job stays in hand."""
    arguments: list[Argument] = [claim_within_ms]
    for job in jobs:
        limit = "" if job.limit is None else job.limit
        arguments += (job.job_id, job.deployment, job.tier, limit, job.decision)
    return call("dispatch", arguments, list)


def hedge(job_id: str, attempt: int, second: str) -> Command[bool]:
    """Ties an accepted job to the one that it is a second try of, which is at that attempt; otherwise it ends."""
    return call("hedge", [RECORD_TTL_S, job_id, attempt, second], bool)


@dataclass(frozen=True, slots=True)
class Rejection:
    job_id: str
    state: JobState
    error: ErrorInfo
    decision: bytes = b""


def reject(jobs: Sequence[Rejection]) -> Command[int]:
    arguments: list[Argument] = [UNRECORDED_TTL_S]
    for job in jobs:
        arguments += (job.job_id, job.state.value, _dump(job.error), job.decision)
    return call("reject", arguments, int)


def recall(jobs: Iterable[tuple[str, int]]) -> Command[int]:
    """Takes back dispatches that the broker didn't accept."""
    return _take_back(_UNSENT, jobs)


def decline(jobs: Iterable[tuple[str, int]]) -> Command[int]:
    """A worker sends back the jobs of a message that it doesn't claim."""
    return _take_back(_DECLINED, jobs)


def undelivered(jobs: Iterable[tuple[str, int]]) -> Command[int]:
    """The broker has put their message into its dead-letter queue."""
    return _take_back(_UNDELIVERED, jobs)


def _take_back(reason: bytes, jobs: Iterable[tuple[str, int]]) -> Command[int]:
    arguments: list[Argument] = [reason]
    for job_id, attempt in jobs:
        arguments += (job_id, attempt)
    return call("recall", arguments, int)


@dataclass(frozen=True, slots=True)
class Claimed:
    """``failures``: how many tries of the job have failed at this deployment before this one. ``left_ms``: to its
    deadline at this moment, by the store's clock; ``None`` without one."""

    spec: JobSpec
    attempt: int
    payload: bytes
    failures: int = 0
    left_ms: int | None = None


def claim(worker: str, jobs: Sequence[tuple[str, int]], *, deployment: str = "") -> Command[list[Claimed]]:
    """Answers only the jobs that are now this worker's; stale and repeated ones are left out, and with a
    ``deployment`` those that were sent to another."""
    arguments: list[Argument] = [worker, deployment]
    for job_id, attempt in jobs:
        arguments += (job_id, attempt)

    def parse(answer: list[list[bytes]]) -> list[Claimed]:
        return [_one_claimed(attempt, *record) for (_, attempt), record in zip(jobs, answer, strict=True) if record]

    return call("claim", arguments, parse)


def _one_claimed(attempt: int, spec: bytes, payload: bytes, failures: bytes, now_ms: bytes) -> Claimed:
    loaded = JobSpec.load(spec)
    left_ms = None if loaded.deadline_ms is None else loaded.deadline_ms - int(now_ms)
    return Claimed(loaded, attempt, payload, int(failures), left_ms)


def heartbeat(
    info: WorkerInfo, held: Sequence[str], *, ttl_s: int = 30, forgotten_ms: int = 10_000
) -> Command[dict[str, str]]:
    """Answers job id -> why (``cancelled``, ``expired``, ``lost``) for the jobs to stop.

    Jobs that were claimed ``forgotten_ms`` ago for this worker and aren't in ``held`` are queued again.
    """
    fixed: list[Argument] = [info.id, info.dump(), ttl_s, forgotten_ms, _FORGOTTEN, _BROKEN, UNRECORDED_TTL_S]
    return call("heartbeat", [*fixed, *held], _stops)


def _stops(answer: list[list[bytes]]) -> dict[str, str]:
    return {job_id.decode(): why.decode() for job_id, why in answer}


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a streamed answer: ``body`` is one line of JSON."""

    job_id: str
    attempt: int
    body: bytes


#: What ``emit`` answers for a piece of a stream that has a second try, or is one, before ``speak``.
UNSETTLED = -1


def emit(pieces: Sequence[Piece]) -> Command[list[int]]:
    """Answers 1 per piece that counted, 0 per refused one, ``UNSETTLED`` where ``speak`` comes first. The same command
    sent again adds nothing."""
    arguments: list[Argument] = [secrets.token_hex(8)]
    for piece in pieces:
        arguments += (piece.job_id, piece.attempt, piece.body)
    return call("emit", arguments, list)


def speak(job_id: str, attempt: int) -> Command[bool]:
    """Of a stream and its second try one speaks: whether it is this one. The other one is told to stop."""
    return call("speak", [RECORD_TTL_S, job_id, attempt], bool)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of an attempt that ends its job. ``result``: the JSON body of the answer."""

    job_id: str
    attempt: int
    state: JobState
    result: bytes = b""
    error: ErrorInfo | None = None
    measures: bytes = b""
    end: End = "neutral"


def commit(
    outcomes: Sequence[Outcome], *, breakers: bytes = _BREAKERS, ttl_s: int = UNRECORDED_TTL_S
) -> Command[list[int]]:
    """Answers 1 per outcome that counted, 0 per refused one. ``breakers``: the deployments' (``breaker.dump``)."""
    arguments: list[Argument] = [ttl_s, breakers]
    for outcome in outcomes:
        arguments += (
            outcome.job_id,
            outcome.attempt,
            outcome.state.value,
            outcome.result,
            _dump(outcome.error) if outcome.error else b"",
            outcome.measures,
            outcome.end,
        )
    return call("commit", arguments, list)


@dataclass(frozen=True, slots=True)
class Failure:
    """The end of an attempt that doesn't end its job. ``retry``: another try, ``delay_ms`` from now; ``wait``: the
    same, and nothing has failed; ``leave``: no further try at this deployment. ``failures``: of the job there,
    before this one."""

    job_id: str
    attempt: int
    delay_ms: int
    error: ErrorInfo
    action: Literal["retry", "wait", "leave"] = "retry"
    measures: bytes = b""
    cost_usd: float = 0.0
    failures: int = 0


def fail(failures: Sequence[Failure], *, breakers: bytes = _BREAKERS) -> Command[list[str]]:
    """Answers per failure ``queued``, ``moving`` (in its tier's dead-letter queue), ``ended`` or ``fenced``."""
    arguments: list[Argument] = [UNRECORDED_TTL_S, breakers, _BROKEN]
    for failure in failures:
        error = failure.error
        arguments += (failure.job_id, failure.attempt, failure.action, failure.delay_ms, _dump(error))
        arguments += (_word(error.code), failure.measures, failure.cost_usd or "0")
        arguments.append(end_for_breaker(error, failure.failures))
    return call("fail", arguments, _words)


def _word(code: str) -> str:
    """A code as a word of the store's own: some come from elsewhere."""
    return "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in code)[:64]


def hand_back(worker: str, job_ids: Sequence[str] = ()) -> Command[int]:
    """The worker's farewell; with ``job_ids`` only these jobs go back, and it stays."""
    return call("hand_back", [worker, _HANDED_BACK, _BROKEN, UNRECORDED_TTL_S, *job_ids], int)


def rescue(*, dead_after_ms: int = 5_000, deaths: int = 3, at_most: int = 500) -> Command[tuple[int, int]]:
    """Answers (jobs sent back, jobs parked)."""
    arguments: list[Argument] = [
        dead_after_ms,
        deaths,
        at_most,
        UNRECORDED_TTL_S,
        _WORKER_LOST,
        _POISON,
        _BROKEN,
    ]
    return call("rescue", arguments, _pair)


def reclaim(*, at_most: int = 500, outrun_ms: int = 60_000) -> Command[tuple[int, int]]:
    """Answers (dispatches reclaimed, takes reclaimed). ``outrun_ms``: how long a worker may take to say what a try had
    taken that was outrun."""
    return call("reclaim", [at_most, _UNCLAIMED, outrun_ms], _pair)


def promote(*, at_most: int = 500) -> Command[int]:
    return call("promote", [at_most], int)


def expire(*, at_most: int = 500) -> Command[int]:
    return call("expire", [at_most, UNRECORDED_TTL_S, _EXPIRED], int)


def cancel(job_ids: Sequence[str]) -> Command[list[str]]:
    """Answers the state of each job afterwards: ``stopping`` while its engine still has to stop, ``""`` if unknown."""
    return call("cancel", [UNRECORDED_TTL_S, "cancelled", _CANCELLED, *job_ids], _words)


def replay(job_ids: Sequence[str]) -> Command[list[str]]:
    """Answers the state of each job afterwards, ``""`` if unknown; ``over`` where a budget has no room, ``unready``
    where one isn't open. Only parked jobs move. They count in the windows of budgets in which they were accepted."""
    return call("replay", [argument for job_id in job_ids for argument in (job_id, "", "=", "")], _words)


def replay_as(spec: JobSpec, charges: str, payload: bytes = b"") -> Command[list[str]]:
    """The same for one job, which is ``spec`` from now on, with what to reserve of budgets (as of ``NewJob``), and with
    that ``payload`` if there is one."""
    return call("replay", [spec.id, spec.dump(), charges, payload], _words)


def drop(job_ids: Sequence[str]) -> Command[list[int]]:
    """Parked jobs leave for good, payload and all. Answers 1 per job that left, 0 where none was parked."""
    return call("drop", job_ids, list)


def erase(job_ids: Sequence[str]) -> Command[list[str]]:
    """Ended jobs leave for good, answers and logs with them. Answers the state of each before, ``""`` if unknown; those
    that haven't ended, or are parked, stay."""
    return call("erase", job_ids, _words)


def decisions(job_ids: Sequence[str]) -> Command[list[bytes]]:
    """What was decided of each, as JSON; empty of a job that has no decision or is gone."""
    return call("decisions", job_ids, list)


def forget(job_ids: Sequence[str], lines: Sequence[str] = (), *, ttl_s: int = RECORD_TTL_S) -> Command[int]:
    """The ledger has these: batch lines leave Redis, others leave the list of open jobs. ``lines``: of batches, and
    known to have ended for good, so that nobody has to look. ``ttl_s``: how long the others stay readable."""
    return call("forget", [ttl_s, len(lines), *lines, *job_ids], int)


@dataclass(frozen=True, slots=True)
class Watched:
    """``events``: JSON bodies, the first one has the number that was asked for."""

    state: JobState
    events: list[bytes]


def watch(job_id: str, channel: str, *, first: int = 1) -> Command[Watched | None]:
    """Follow a job on ``channel``; answers what happened before, or ``None`` if it is unknown."""
    return call("watch", [job_id, channel, first], _watched)


def _watched(answer: list[Any]) -> Watched | None:
    return Watched(JobState(answer[0].decode()), answer[1]) if answer else None


def _words(answer: list[bytes]) -> list[str]:
    return [word.decode() for word in answer]


def _pair(answer: list[int]) -> tuple[int, int]:
    return answer[0], answer[1]
