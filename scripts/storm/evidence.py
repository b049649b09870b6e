"""Reads what a run has left: the ledger, the store, the engines' logs."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

from fabric.store import Store
from storm.asks import asked
from storm.values import ENDS, Generation, Row

_COLUMNS = (
    *("job_id", "attempt", "state", "requests", "privacy", "tier", "deployment", "worker", "error_code"),
    *("input_tokens", "output_tokens", "cost_usd", "machine_usd", "estimated"),
    *("accepted_ms", "claimed_ms", "finished_ms", "batch_id", "line_no"),
)
_FINAL = ENDS
#: Indexes that hold nothing once all jobs have ended.
_SETS = ("live", "taken", "delayed", "dispatched", "deadlines")
_PATTERNS = ("lane:*", "dlq:*", "busy:*", "held:*", "abort:*")


def rows(database: Path) -> list[Row]:
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30) as connection:
        found = connection.execute(f"SELECT {', '.join(_COLUMNS)} FROM usage").fetchall()
    return [Row(*values) for values in found]


def generations(folder: Path) -> list[Generation]:
    """Of both played engines. The label is read off the prompt that they got."""
    found: dict[tuple[str, str], Generation] = {}
    for engine in ("cloud", "home"):
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


def ends(store: Store) -> dict[str, int]:
    """Final events in each job's log. Logs of jobs that were parked and replayed would have one for each end."""
    counts = {}
    for key in store.redis.scan_iter("fabric:events:*", count=1000):
        kinds = [json.loads(event).get("type") for event in store.redis.lrange(key, 0, -1)]
        counts[key.decode().removeprefix("fabric:events:")] = sum(kind in _FINAL for kind in kinds)
    return counts


def budgets(store: Store) -> dict[str, tuple[int, int]]:
    found = {}
    for key in store.redis.scan_iter("fabric:budget:*", count=1000):
        values = store.redis.hgetall(key)
        found[key.decode().removeprefix("fabric:budget:")] = (int(values[b"reserved"]), int(values[b"spent"]))
    return found


def _size(store: Store, key: bytes) -> int:
    kind = store.redis.type(key)
    sizes = {b"zset": store.redis.zcard, b"set": store.redis.scard, b"hash": store.redis.hlen}
    return int(sizes[kind](key)) if kind in sizes else 0
