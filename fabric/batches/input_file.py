"""The file that a batch was made of."""

from __future__ import annotations

from typing import BinaryIO

from fabric.batches.storage import Storage
from fabric.ledger import Ledger, files
from fabric.ledger.batches import Batch


def open_input(ledger: Ledger, storage: Storage, batch: Batch) -> BinaryIO:
    """
    Raises:
        NotFound: it is gone.
        Unavailable: the ledger is away.
    """
    file = ledger.read(files.find, batch.input_file_id)
    return storage.open(file.path if file else batch.input_file_id)
