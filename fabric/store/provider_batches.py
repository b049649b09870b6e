"""Which job waits in which batch of a provider. The rules are in ``scripts/provider_*.lua``.

One hash a deployment: ``job ID`` -> group, ``group ID`` -> what is known of it (JSON), ``open ID`` -> jobs that
still wait in it. Groups stay until they are forgotten, so that a batch that nobody waits for is called off even
when the worker that was about to do it died.
"""

from __future__ import annotations

from collections.abc import Sequence

from fabric.store.command import Command, call

#: How long it is known whose bill a late answer goes on: longer than any provider keeps a batch.
_BILL_S = 7 * 86_400
#: Fields of one step of a sweep.
_STEP = 500


def enlist(deployment: str, group: str, known: bytes, job_ids: Sequence[str]) -> Command[int]:
    """Answers how many weren't in it before."""
    return call("provider_enlist", [deployment, group, known, *job_ids], int)


def find(deployment: str, job_ids: Sequence[str]) -> Command[list[bytes]]:
    """Per job what is known of its group; empty where it is in none."""
    return call("provider_find", [deployment, *job_ids], list)


def release(
    deployment: str, job_ids: Sequence[str], *, withdrawn: bool = False, answered: bool = False
) -> Command[list[bytes]]:
    """Answers the groups in which nobody waits now. ``withdrawn``: of those that still run it is kept whose bill a
    late answer goes on. ``answered``: those stay that haven't ended: their answer isn't stored, and will be asked for
    again; ``sweep`` lets them go."""
    how = _BILL_S if withdrawn else "answered" if answered else ""
    return call("provider_release", [deployment, how, *job_ids], list)


def spent(deployment: str, group: str, used: Sequence[tuple[str, bytes]]) -> Command[int]:
    """Answers that came for jobs which may have been withdrawn, as id and measures. Those that were get another
    completion, numbered below zero; answers how many."""
    return call("provider_spent", [deployment, group, *(part for pair in used for part in pair)], int)


def forget(deployment: str, group: str) -> Command[int]:
    return Command(("HDEL", f"fabric:provider:{deployment}", f"group {group}", f"open {group}"), int)


def sweep(deployment: str, cursor: int) -> Command[tuple[int, list[bytes]]]:
    """One step; from and back to cursor 0. Answers the groups in which nobody waits."""
    return call("provider_sweep", [deployment, cursor, _STEP], lambda answer: (int(answer[0]), answer[1]))
