"""The job store on Redis or Valkey: records, backlog, leases, events.

``transitions`` and ``reads`` build ``Command`` values and say how to read their answers;
``Store`` and ``AsyncStore`` run them. The rules live in ``scripts/*.lua``, one file a transition,
each atomic.
"""

from fabric.store.command import Command
from fabric.store.store import AsyncStore, Store

__all__ = ["AsyncStore", "Command", "Store"]
