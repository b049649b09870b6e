"""Reads of the store, as commands: job records, lists, counts, completions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from fabric.contracts.completion import Completion, EarlierAttempt
from fabric.contracts.experience import AnswerLength, Experience, Pace, fitted, survival
from fabric.contracts.job import Attempt, JobSpec, JobState, Measures
from fabric.contracts.worker import WorkerInfo
from fabric.store.command import Command

_PREFIX = "fabric:"
COMPLETIONS = f"{_PREFIX}completions"
WAKE = f"{_PREFIX}wake"


def gateway_channel(gateway_id: str) -> str:
    return f"{_PREFIX}gateway:{gateway_id}"


def beating(since_ms: int) -> Command[list[str]]:
    """Ids of workers that had a heartbeat since then (milliseconds since the epoch, on the store's clock)."""
    return Command(("ZRANGEBYSCORE", f"{_PREFIX}workers", since_ms, "+inf"), _ids)


def worker(worker_id: str) -> Command[WorkerInfo | None]:
    """What its last heartbeat said."""
    key = f"{_PREFIX}worker:{worker_id}"
    return Command(("GET", key), lambda answer: WorkerInfo.load(answer) if answer else None)


def worker_channel(worker_id: str) -> str:
    return f"{_PREFIX}worker:{worker_id}"


@dataclass(frozen=True, slots=True)
class JobRecord:
    """Everything that the store knows of a job, but its payload. Times: milliseconds since the epoch."""

    spec: JobSpec
    state: JobState
    attempts: tuple[Attempt, ...]
    accepted_ms: int
    finished_ms: int | None
    lane: str
    decision: dict[str, Any] | None
    result: bytes | None
    error: dict[str, Any] | None
    measures: Measures
    placeholders: bytes = b""  #: in ``result`` and the log: ``fabric.contracts.payload``


def job(job_id: str) -> Command[JobRecord | None]:
    return Command(("HGETALL", f"{_PREFIX}job:{job_id}"), _record)


_SUMMARY = (
    *("spec", "state", "history", "deployment", "attempt", "tier", "worker", "dispatched_at", "claimed_at"),
    *("finished_at", "error", "accepted_at", "lane", "decision", "measures", "sent_by"),
    *("left", "left_at", "left_error", "left_measures", "exhausted", "spent"),
)


def summary(job_id: str) -> Command[JobRecord | None]:
    """The record without its result, which may be large: for lists."""
    names = [name.encode() for name in _SUMMARY]
    return Command(
        ("HMGET", f"{_PREFIX}job:{job_id}", *_SUMMARY),
        lambda answer: _record({name: value for name, value in zip(names, answer, strict=True) if value is not None}),
    )


def charges(job_id: str) -> Command[str]:
    """What was reserved for the job of which budgets (``NewJob.charges``)."""
    return Command(("HGET", f"{_PREFIX}job:{job_id}", "charges"), lambda answer: answer.decode() if answer else "")


def watchers(job_id: str) -> Command[list[str]]:
    """The channels that get this job's events."""
    return Command(
        ("HGET", f"{_PREFIX}job:{job_id}", "watchers"), lambda answer: answer.decode().split(",") if answer else []
    )


def events(job_id: str) -> Command[list[bytes]]:
    """The job's log, the event with number 1 first."""
    return Command(("LRANGE", f"{_PREFIX}events:{job_id}", 0, -1), list)


def event_count(job_id: str) -> Command[int]:
    """The number of the job's newest event."""
    return Command(("LLEN", f"{_PREFIX}events:{job_id}"), int)


def _pairs(answer: Any) -> dict[bytes, bytes]:
    """HGETALL and XREADGROUP fields come as a map (RESP3) or as a flat list (RESP2, scripts)."""
    if isinstance(answer, dict):
        return answer
    return dict(zip(answer[::2], answer[1::2], strict=True))


def _number(value: bytes | None) -> int | None:
    return int(value) if value else None


def _json(value: bytes | None) -> Any:
    return orjson.loads(value) if value else None


def _text(value: bytes | None) -> str | None:
    return value.decode() if value else None


def _record(answer: Any) -> JobRecord | None:
    fields = _pairs(answer)
    if b"spec" not in fields:
        return None
    state = JobState(fields[b"state"].decode())
    attempts = [Attempt(**a) for a in orjson.loads(b"[" + fields.get(b"history", b"") + b"]")]
    if fields.get(b"deployment"):
        attempts.append(_last_attempt(fields, state))
    return JobRecord(
        spec=JobSpec.load(fields[b"spec"]),
        state=state,
        attempts=tuple(attempts),
        accepted_ms=int(fields[b"accepted_at"]),
        finished_ms=_number(fields.get(b"finished_at")),
        lane=fields[b"lane"].decode(),
        decision=_json(fields.get(b"decision")),
        result=fields.get(b"result"),
        error=_json(fields.get(b"error")),
        measures=Measures.load(fields.get(b"measures")),
        placeholders=fields.get(b"placeholders", b""),
    )


def _last_attempt(fields: dict[bytes, bytes], state: JobState) -> Attempt:
    """The one that the record describes. In its tier's dead-letter queue it is over, and the job isn't."""
    left = b"left" in fields
    return Attempt(
        number=int(fields[b"attempt"]),
        deployment=fields[b"deployment"].decode(),
        tier=fields[b"tier"].decode(),
        worker=_text(fields.get(b"worker")),
        outcome="exhausted" if left else state.value,
        dispatched_ms=_number(fields.get(b"dispatched_at")),
        claimed_ms=_number(fields.get(b"claimed_at")),
        ended_ms=_number(fields.get(b"left_at" if left else b"finished_at")),
        error=_json(fields.get(b"left_error" if left else b"error")),
        measures=_json(fields.get(b"left_measures" if left else b"measures")),
        decision=_json(fields.get(b"sent_by") or fields.get(b"decision")),
    )


def placeholders(job_id: str) -> Command[bytes]:
    """What the job's answer must be rid of before its caller gets it; empty where there is nothing of the kind."""
    return Command(("HGET", f"{_PREFIX}job:{job_id}", "placeholders"), lambda answer: answer or b"")


def label_blocks() -> Command[dict[str, int]]:
    """Label -> accepted jobs that it kept away from a deployment, since the store was made."""
    return Command(("HGETALL", f"{_PREFIX}label_blocks"), lambda a: {k.decode(): int(v) for k, v in _pairs(a).items()})


@dataclass(frozen=True, slots=True)
class Silent:
    """A job that is at an attempt and hasn't said anything. ``placeholders`` and ``charges``: as in the record."""

    attempt: int
    placeholders: bytes
    charges: str


def silent(job_id: str) -> Command[Silent | None]:
    """``None``: it has ended, waits, is being stopped, speaks, or has its second try already."""
    names = ("state", "attempt", "placeholders", "charges", "first_token_at", "cancel", "hedge")
    return Command(("HMGET", f"{_PREFIX}job:{job_id}", *names), _silent)


def _silent(answer: list[bytes | None]) -> Silent | None:
    state, attempt, placeholders, charges, *done = answer
    if state not in (b"running", b"dispatched") or any(done):
        return None
    return Silent(int(attempt or 0), placeholders or b"", (charges or b"").decode())


def hedges() -> Command[dict[str, int]]:
    """``begun`` and ``won`` -> second tries, since the store was made."""
    return Command(("HGETALL", f"{_PREFIX}hedges"), lambda a: {k.decode(): int(v) for k, v in _pairs(a).items()})


def payload(job_id: str) -> Command[bytes | None]:
    return Command(("GET", f"{_PREFIX}payload:{job_id}"), lambda answer: answer)


def state(job_id: str) -> Command[JobState | None]:
    return Command(("HGET", f"{_PREFIX}job:{job_id}", "state"), lambda a: JobState(a.decode()) if a else None)


def rank(lane: str, job_id: str) -> Command[int | None]:
    """How many jobs stand before this one in its lane."""
    return Command(("ZRANK", f"{_PREFIX}lane:{lane}", job_id), lambda answer: answer)


def open_jobs(tenant: str, *, before_ms: int | None, limit: int, offset: int = 0) -> Command[list[str]]:
    """Ids of jobs that the ledger hasn't taken over yet, newest first; of one millisecond the greater id first."""
    return Command(_newest_first(f"jobs:{tenant}", before_ms, limit, offset), _ids)


def parked(*, limit: int, before_ms: int | None = None, offset: int = 0) -> Command[list[str]]:
    """Ids of parked jobs, of all tenants, newest first; of one millisecond the greater id first."""
    return Command(_newest_first("dead", before_ms, limit, offset), _ids)


def _newest_first(index: str, before_ms: int | None, limit: int, offset: int) -> tuple[str | int, ...]:
    newest: str | int = "+inf" if before_ms is None else f"({before_ms}"
    return ("ZREVRANGEBYSCORE", f"{_PREFIX}{index}", newest, "-inf", "LIMIT", offset, limit)


def parked_count() -> Command[int]:
    return Command(("ZCARD", f"{_PREFIX}dead"), int)


def pace() -> Command[dict[str, float]]:
    """Deployment -> mean seconds from dispatch to end of its jobs; recent jobs count most."""
    return Command(("HGETALL", f"{_PREFIX}pace"), lambda a: {k.decode(): float(v) for k, v in _pairs(a).items()})


def experience() -> Command[Experience]:
    """What succeeded jobs have taught of every deployment's pace and every model's answers."""
    return Command(("HGETALL", f"{_PREFIX}experience"), _experience)


def _experience(answer: Any) -> Experience:
    paces, lengths = {}, {}
    for name, value in _pairs(answer).items():
        kind, endpoint, of = name.decode().split(" ", 2)
        means = orjson.loads(value)
        if kind == "length":
            known = survival(means["ended"], means["cut"]) if "ended" in means else None
            lengths[endpoint, of] = AnswerLength(int(means["n"]), int(means["at"]), means["tokens"], known)
            continue
        base_s, slope_s = fitted(means["first_n"], means["x"], means["y"], means["xx"], means["xy"])
        paces[endpoint, of] = Pace(
            samples=int(means["n"]),
            updated_ms=int(means["at"]),
            engine_s=means["engine_s"],
            base_s=base_s,
            per_prompt_token_s=slope_s,
            per_output_token_s=means["token_s"],
            first_tokens=int(means["first_n"]),
            queue_s=means.get("queue_s", 0.0),
            end_s=means.get("end_s", 0.0),
        )
    return Experience(paces, lengths)


def live_count() -> Command[int]:
    """Jobs that were accepted and haven't ended."""
    return Command(("ZCARD", f"{_PREFIX}live"), int)


def fallbacks() -> Command[dict[tuple[str, str, str], int]]:
    """(Tier left, tier gone to, code of the error) -> jobs that moved, since the store was made."""
    return Command(("HGETALL", f"{_PREFIX}fallbacks"), _fallbacks)


def _fallbacks(answer: Any) -> dict[tuple[str, str, str], int]:
    counted = {tuple(name.decode().split(" ", 2)): int(count) for name, count in _pairs(answer).items()}
    return counted  # type: ignore[return-value]  # three words each


def fenced_count() -> Command[int]:
    """Commits refused because they came late or twice, since the store was made."""
    return Command(("GET", f"{_PREFIX}fenced"), lambda answer: int(answer or 0))


def exist(job_ids: list[str]) -> Command[int]:
    """How many of these jobs have a record."""
    return Command(("EXISTS", *(f"{_PREFIX}job:{job_id}" for job_id in job_ids)), int)


def ping() -> Command[bool]:
    return Command(("PING",), lambda answer: answer in (b"PONG", True))


def _ids(answer: list[bytes]) -> list[str]:
    return [job_id.decode() for job_id in answer]


def completion(entry_id: bytes, fields: Any) -> Completion:
    """One entry of the completion stream."""
    f = _pairs(fields)
    return Completion(
        entry_id=entry_id.decode(),
        spec=JobSpec.load(f[b"spec"]),
        state=f[b"state"].decode(),
        attempt=int(f[b"attempt"]),
        deployment=_text(f[b"deployment"]),
        tier=_text(f[b"tier"]),
        worker=_text(f[b"worker"]),
        accepted_ms=int(f[b"accepted_ms"]),
        dispatched_ms=_number(f[b"dispatched_ms"]),
        claimed_ms=_number(f[b"claimed_ms"]),
        finished_ms=int(f[b"finished_ms"]),
        measures=Measures.load(f[b"measures"]),
        result=f.get(b"result"),
        error=f[b"error"] or None,
        earlier=tuple(map(_earlier, orjson.loads(f[b"attempts"]))) if b"attempts" in f else (),
        placeholders=f.get(b"placeholders", b""),
    )


def _earlier(attempt: dict[str, Any]) -> EarlierAttempt:
    return EarlierAttempt(
        number=attempt["number"],
        deployment=attempt["deployment"],
        tier=attempt["tier"],
        worker=attempt["worker"],
        outcome=attempt["outcome"],
        dispatched_ms=attempt["dispatched_ms"],
        claimed_ms=attempt["claimed_ms"],
        ended_ms=attempt["ended_ms"],
        measures=Measures.of(attempt["measures"]) if attempt.get("measures") else Measures(),
        error=attempt["error"],
        policy_hash=(attempt.get("decision") or {}).get("policy_hash"),
    )
