"""The disk under the embedded store, the ledger and the files of batches: what of it is kept for work that is in.

When it is full to the last byte nothing can end any more: answers can't be written down, and Valkey refuses all
writes. So new work is refused while there is still room for the rest of the old.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from fabric.contracts.errors import Unavailable

_RETRY_S = 10.0


@dataclass(frozen=True, slots=True)
class Disk:
    """``reserve_bytes``: with less than this free, no new work."""

    folder: Path
    reserve_bytes: int

    def is_low(self) -> bool:
        """Asks the system; where the folder can't be looked at, there is nothing to refuse for."""
        try:
            found = os.statvfs(self.folder)
        except OSError:
            return False
        return found.f_bavail * found.f_frsize < self.reserve_bytes

    def refusal(self) -> Unavailable:
        return Unavailable(
            f"The fabric's disk is nearly full: less than {self.reserve_bytes / 2**20:.0f} MiB are free. "
            "What is in goes on; new work is taken again when there is room.",
            retry_after_s=_RETRY_S,
        )
