"""Tells the batch service at once that a batch was created or cancelled."""

from __future__ import annotations

from fabric.store.command import Command

KEY = "fabric:batches:wake"


def wake() -> Command[int]:
    """For the gateway, after the ledger's transaction. A lost wake costs a second, not a batch."""
    return Command(("LPUSH", KEY, "1"), int)


def wait(timeout_s: float) -> Command[bool]:
    """For the batch service: blocks until somebody called; answers whether somebody did."""
    return Command(("BLPOP", KEY, timeout_s), lambda answer: answer is not None)


def clear() -> Command[int]:
    """One look at the ledger answers all calls until now."""
    return Command(("DEL", KEY), int)
