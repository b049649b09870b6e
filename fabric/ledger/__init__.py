"""The ledger: files, batches and usage in SQL (SQLite or PostgreSQL).

``Ledger`` opens transactions; ``files``, ``batches``, ``lines`` and ``usage`` hold the statements,
as functions of a connection. ``fabric.recorder`` moves completions from the store into it.
"""

from fabric.ledger.ledger import Ledger
from fabric.ledger.upgrade import upgrade

__all__ = ["Ledger", "upgrade"]
