"""The audit trail's last row, kept where who can write to the ledger can't: a trail that was cut short is found."""

from __future__ import annotations

from fabric.store.command import Command, call

_KEY = "fabric:audit:head"


def keep(seq: int, head: str) -> Command[bool]:
    """``head``: as text. Not where a later one is kept already; answers whether it was kept."""
    return call("keep_head", [seq, head], bool)


def kept() -> Command[str | None]:
    return Command(("HGET", _KEY, "head"), lambda answer: answer.decode() if answer else None)
