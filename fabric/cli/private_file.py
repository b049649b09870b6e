"""Files for their owner alone."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def replace(path: Path, content: bytes) -> None:
    """In one step: readers see the old content or the new one, whole. Raises ``OSError``; then the old one stays."""
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(draft).replace(path)
    except OSError:  # a full disk
        Path(draft).unlink(missing_ok=True)
        raise
