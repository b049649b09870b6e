"""Reads what a run has left: the ledger, the store, the engines' logs."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import sqlite3
from pathlib import Path

from fabric.store import Store, reads
from storm.asks import MOCK_ANSWER, asked
from storm.values import ENDS, Event, Generation, Kept, Row

_COLUMNS = (
    *("job_id", "attempt", "state", "requests", "privacy", "tier", "deployment", "worker", "error_code"),
    *("input_tokens", "output_tokens", "cost_usd", "machine_usd", "estimated"),
    *("accepted_ms", "claimed_ms", "finished_ms", "batch_id", "line_no"),
)
_FINAL = ENDS
_OF_JOB = re.compile(rb":job_[0-9a-z]{26}")
#: As ``TTL`` answers of a key that doesn't expire.
_NEVER = -1
#: Indexes that hold nothing once all jobs have ended.
_SETS = ("live", "taken", "delayed", "dispatched", "deadlines", "outrun")
_PATTERNS = ("lane:*", "dlq:*", "busy:*", "held:*", "abort:*")


def rows(database: Path) -> list[Row]:
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30) as connection:
        found = connection.execute(f"SELECT {', '.join(_COLUMNS)} FROM usage").fetchall()
    return [Row(*values) for values in found]


def generations(folder: Path) -> list[Generation]:
    """Of both played engines. The label is read off the prompt that they got."""
    found: dict[tuple[str, str], Generation] = {}
    for engine in ("cloud", "home", "provider"):
        for line in (folder / f"{engine}.jsonl").read_text().splitlines():
            note = json.loads(line)
            key = (engine, note["generation"])
            if note["event"] == "began":
                n, label = asked(note["received"]) or (0, "?")
                # Wherever in the request it says so.
                label = "restricted" if "-restricted" in note["received"] else label
                found[key] = Generation(engine, note["generation"], n, label)
            else:
                began = found[key]
                found[key] = Generation(
                    engine, began.generation, began.ask, began.label, True, note["prompt"], note["completion"]
                )
    return list(found.values())


def left(store: Store) -> dict[str, int]:
    """What the store still holds. Parked jobs have ended; workers may be there."""
    redis = store.redis
    counts = {name: int(redis.zcard(f"fabric:{name}")) for name in _SETS}
    counts["completions"] = int(redis.xlen("fabric:completions"))
    for pattern in _PATTERNS:
        counts[pattern] = sum(_size(store, key) for key in redis.scan_iter(f"fabric:{pattern}", count=1000))
    open_jobs = 0
    for key in redis.scan_iter("fabric:job:*", count=1000):
        state = redis.hget(key, "state")
        open_jobs += state is not None and state.decode() not in ENDS
    return {**counts, "job records without an end": open_jobs}


def ends(store: Store) -> dict[str, tuple[str, ...]]:
    """Final events in each job's log: one, or one for each time that it was parked and the last."""
    found = {}
    for key in store.redis.scan_iter("fabric:events:*", count=1000):
        kinds = map(_kind, store.redis.lrange(key, 0, -1))
        found[key.decode().removeprefix("fabric:events:")] = tuple(kind for kind in kinds if kind in _FINAL)
    return found


def events(log: Path, key: bytes) -> list[Event]:
    """Signatures are checked as the Standard Webhooks specification says."""
    found = []
    for line in log.read_text().splitlines():
        note = json.loads(line)
        headers, body = note["headers"], note["body"]
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.{body}".encode()
        wanted = "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
        event = json.loads(body)
        found.append(
            Event(
                note["path"].strip("/"),
                headers["webhook-id"],
                event["type"],
                event["data"]["id"],
                signed=hmac.compare_digest(wanted, headers["webhook-signature"])
                and event["id"] == headers["webhook-id"],
                leaks="ask-" in body or MOCK_ANSWER in body,
                kept=note["status"] < 300,
            )
        )
    return found


def untold(database: Path) -> int:
    """Events that wait for their receiver, and ends of batches that are no events yet."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30) as connection:
        waiting = "SELECT count(*) FROM webhook_deliveries WHERE state = 'waiting'"
        ended = "SELECT count(*) FROM ended_batches"
        # One look: an end becomes an event in one transaction.
        count: int = connection.execute(f"SELECT ({waiting}) + ({ended})").fetchone()[0]
    return count


def second_tries(store: Store) -> tuple[int, int]:
    found = store(reads.hedges())
    return found.get("begun", 0), found.get("won", 0)


def kept(store: Store, before: int) -> Kept:
    """``before``: its memory at the start, in bytes."""
    redis = store.redis
    lasting, longest_s = 0, 0
    for key in redis.scan_iter("fabric:*", count=1000):
        if _OF_JOB.search(key):
            left_s = redis.ttl(key)
            lasting += left_s == _NEVER
            longest_s = max(longest_s, left_s)
    return Kept(lasting, longest_s, memory(store) - before)


def memory(store: Store) -> int:
    used: int = store.redis.info("memory")["used_memory"]
    return used


def budgets(store: Store) -> dict[str, tuple[int, int]]:
    found = {}
    for key in store.redis.scan_iter("fabric:budget:*", count=1000):
        values = store.redis.hgetall(key)
        found[key.decode().removeprefix("fabric:budget:")] = (int(values[b"reserved"]), int(values[b"spent"]))
    return found


def _kind(event: bytes) -> str | None:
    """``None`` for the pieces of a stream, which are sealed."""
    try:
        kind: str | None = json.loads(event).get("type")
    except ValueError:
        return None
    return kind


def _size(store: Store, key: bytes) -> int:
    kind = store.redis.type(key)
    sizes = {b"zset": store.redis.zcard, b"set": store.redis.scard, b"hash": store.redis.hlen}
    return int(sizes[kind](key)) if kind in sizes else 0
