"""Sealed files: written as a stream, read from any place, never plain on the disk.

A file is a head (``fabric.contracts.sealed``) and chunks of 64 KiB, the last one shorter, each with its tag of 16
bytes. A chunk's nonce is its number and whether it is the last: none can be changed, swapped, repeated or left out, and
a file that was cut short or grown has no last chunk. The data key is one file's own, bound to the file's id.
"""

from __future__ import annotations

import io
import os
import struct
from typing import BinaryIO

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fabric.contracts.errors import BrokenSeal
from fabric.contracts.sealed import HEAD, Seals, about, opened

#: Larger ones cost less to read through, smaller ones less to read one line of.
CHUNK = 1 << 16
_TAG = 16
_SEALED_CHUNK = CHUNK + _TAG


class SealedWriter(io.RawIOBase):
    """Seals what is written into ``file``, which stays the caller's to close. Nothing is kept before ``finish``."""

    def __init__(self, file: BinaryIO, seals: Seals, file_id: str) -> None:
        super().__init__()
        self._file = file
        head, self._key = seals.new_key(about("file", file_id))
        file.write(head)
        self._waiting = bytearray()
        self._number = 0
        self._finished = False

    def writable(self) -> bool:
        return True

    def write(self, piece: bytes, /) -> int:  # type: ignore[override]  # of the buffers that may be written, bytes are
        if self._finished:
            raise ValueError("The file is finished.")
        self._waiting += piece
        # One that is full may be the last: it waits until more comes.
        full = max(0, len(self._waiting) - 1) // CHUNK * CHUNK
        if full:
            with memoryview(self._waiting) as waiting:
                for start in range(0, full, CHUNK):
                    self._seal(bytes(waiting[start : start + CHUNK]), last=False)
            del self._waiting[:full]
        return len(piece)

    def finish(self) -> None:
        """Nothing more is written. Again: does nothing."""
        if not self._finished:
            self._finished = True
            self._seal(bytes(self._waiting), last=True)
            self._waiting.clear()
        self._file.flush()

    def fileno(self) -> int:
        return self._file.fileno()

    def _seal(self, chunk: bytes, *, last: bool) -> None:
        self._file.write(self._key.encrypt(_nonce(self._number, last=last), chunk, None))
        self._number += 1


class _SealedReader(io.RawIOBase):
    """Opens one chunk at a time. Owns ``file``."""

    def __init__(self, file: BinaryIO, key: AESGCM) -> None:
        super().__init__()
        self._file = file
        self._key = key
        sealed = os.fstat(file.fileno()).st_size - HEAD
        self._chunks = max(1, -(-sealed // _SEALED_CHUNK))
        self._size = sealed - self._chunks * _TAG
        self._place = 0
        self._number, self._chunk = -1, b""
        # A file that was cut short is refused here and not in the middle of an answer.
        self._load(self._chunks - 1)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError("There is nothing before the start of a file.")
        self._place = start + offset
        return self._place

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]  # the buffered reader gives no other
        number, within = divmod(self._place, CHUNK)
        if number >= self._chunks:
            return 0
        self._load(number)
        piece = self._chunk[within : within + len(buffer)]
        buffer[: len(piece)] = piece
        self._place += len(piece)
        return len(piece)

    def close(self) -> None:
        self._file.close()
        super().close()

    def _load(self, number: int) -> None:
        if number == self._number:
            return
        self._file.seek(HEAD + number * _SEALED_CHUNK)
        sealed = self._file.read(_SEALED_CHUNK)
        self._chunk = opened(self._key, _nonce(number, last=number == self._chunks - 1), sealed)
        self._number = number


def sealed_reader(file: BinaryIO, seals: Seals, file_id: str) -> BinaryIO:
    """What was written, from any place. Closes ``file`` when it is closed.

    Raises:
        BrokenSeal: it isn't sealed, belongs to another id, or its end is missing. Reading raises it for a chunk that
            was altered.
    """
    try:
        return io.BufferedReader(_SealedReader(file, seals.key_in(file.read(HEAD), about("file", file_id))), CHUNK)
    except BrokenSeal:
        file.close()
        raise


def _nonce(number: int, *, last: bool) -> bytes:
    return struct.pack(">IQ", last, number)
