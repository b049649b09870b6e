"""The figures of a run, for people and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from storm.figures import spread
from storm.laws import growths, recoveries
from storm.plan import counts
from storm.run import Result
from storm.values import ENDS

#: Kinds of faults that are a kill -9.
KILLS = ("kill-worker", "kill-process", "kill-store", "kill-broker", "engine-crash")


def figures(result: Result, broken: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Names and numbers, in the order in which they are worth reading."""
    evidence = result.evidence
    jobs = {row.job_id for row in evidence.rows} - evidence.twins | {told.job_id for told in evidence.told}
    begun, won = evidence.second_tries
    ends = [row for row in evidence.rows if row.state in ENDS and row.attempt >= 0]
    ended = Counter(row.job_id for row in ends if row.state != "dead")
    parked = {row.job_id for row in ends if row.state == "dead"}
    deaths, backs = recoveries(evidence)
    errors = Counter(row.error_code for row in evidence.rows if row.error_code)
    lives = growths(evidence)
    finished = Counter(g.ask for g in evidence.generations if g.answered)
    return {
        "jobs accepted": len(jobs),
        "of them lines of batches": len(evidence.lines),
        "ends": dict(Counter(row.state for row in ends).most_common()),
        "attempts": dict(Counter(row.deployment or "none" for row in evidence.rows).most_common()),
        "errors of attempts": dict(errors.most_common()),
        "faults injected": counts(result.inflicted),
        "killed with -9": ", ".join(sorted({fault.target for fault in result.inflicted if fault.kind in KILLS})),
        "jobs lost": sum(job not in ended and job not in parked for job in jobs),
        "duplicated commits": sum(count - 1 for count in ended.values())
        + sum(max(0, len([end for end in found if end != "dead"]) - 1) for found in evidence.ends.values()),
        "second tries": {"begun": begun, "won": won},
        "parked and replayed": len(evidence.replayed),
        "of them succeeded": sum(row.state == "succeeded" and row.job_id in evidence.replayed for row in ends),
        "events told": len({event.id for event in evidence.events}),
        "told more than once": len(evidence.events) - len({event.id for event in evidence.events}),
        "recovery from a worker's death": spread(deaths),
        "recovery from a broker's restart": spread(backs),
        "answers that were generated more than once": sum(count > 1 for count in finished.values()),
        "looks at the door during outages": len(evidence.probes),
        "holes in Valkey's file, mended": evidence.holes,
        "Valkey's growth (bytes a job)": round(evidence.kept.bytes / max(1, len(jobs))),
        "largest process (MB)": round(max((max(m.bytes, default=0) for m in evidence.memory), default=0) / 1e6),
        "processes watched for growth": len(lives),
        "most that one grew by (MB)": round(max((late - early for _, early, late in lives), default=0) / 1e6),
        "laws broken": {law: list(found) for law, found in broken.items()},
    }


def text(figures: Mapping[str, Any]) -> str:
    lines = []
    for name, value in figures.items():
        if isinstance(value, Mapping) and name != "laws broken":
            shown = ", ".join(f"{key} {count}" for key, count in value.items()) or "none"
        elif name == "laws broken":
            shown = "none" if not value else ""
        else:
            shown = str(value)
        lines.append(f"{name}: {shown}".rstrip())
    for law, found in figures["laws broken"].items():
        lines.append(f"  {law} ({len(found)} times)")
        lines += [f"    {sentence}" for sentence in found[:10]]
    return "\n".join(lines)
