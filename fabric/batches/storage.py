"""File bytes on disk, sealed: written under a temporary name, on the disk for good before they get their own.

A file's name is its id, which the fabric made itself: no caller's text becomes a path.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fabric.batches.sealed_file import SealedWriter, sealed_reader
from fabric.contracts.errors import NotFound, TooLarge, Unavailable
from fabric.contracts.ids import is_id
from fabric.contracts.sealed import Seals

_WRITE_BYTES = 1 << 20
_READ_BYTES = 1 << 18
_PARTIAL = ".partial-"
#: A disk that is full has room again when somebody has made some.
_AGAIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Stored:
    """``path``: name inside the directory. ``bytes``: as they came, not as they lie there. ``lines``: those that
    aren't blank."""

    path: str
    bytes: int
    lines: int


class LineCounter:
    """Counts the lines of a text that comes in pieces, without those that are blank."""

    def __init__(self) -> None:
        self._ended = 0
        self._begun = False

    def add(self, piece: bytes) -> None:
        *ended, last = piece.split(b"\n")
        for part in ended:
            if self._begun or (part and not part.isspace()):
                self._ended += 1
            self._begun = False
        if last and not last.isspace():
            self._begun = True

    @property
    def lines(self) -> int:
        return self._ended + self._begun


@dataclass(frozen=True, slots=True)
class Draft:
    """A file that nobody sees yet."""

    file: SealedWriter
    partial: Path
    target: Path

    def to_disk(self) -> None:
        """All is written, and survives a power cut. May take long, ``publish`` doesn't after this."""
        self.file.finish()
        os.fsync(self.file.fileno())

    def publish(self) -> None:
        """Now it is there under its name, instead of an earlier one."""
        self.to_disk()
        self.partial.replace(self.target)
        descriptor = os.open(self.target.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class Storage:
    """Files in one directory, which gateways and recorders share.

    ``seals``: the same for all of them.
    """

    def __init__(self, directory: Path, seals: Seals) -> None:
        self.directory = directory
        self._seals = seals
        directory.mkdir(parents=True, exist_ok=True)

    def location(self, path: str) -> Path:
        """
        Raises:
            NotFound: not the name of a file of the fabric.
        """
        if not is_id(path, "file"):
            raise NotFound("The file has no content.")
        return self.directory / path

    async def save(self, file_id: str, chunks: AsyncIterable[bytes], *, limit_bytes: int) -> Stored:
        """Writes what comes, in bounded memory. Nothing is left behind when it fails.

        Raises:
            TooLarge: more than ``limit_bytes``.
            Unavailable: the disk doesn't take it.
        """
        try:
            return await self._save(file_id, chunks, limit_bytes)
        except OSError as error:
            raise Unavailable(
                f"The files directory can't be written ({error.strerror}); try again.", retry_after_s=_AGAIN_S
            ) from None

    async def _save(self, file_id: str, chunks: AsyncIterable[bytes], limit_bytes: int) -> Stored:
        counter = LineCounter()
        size = 0
        with self.draft(file_id) as draft:

            def write(piece: bytes) -> None:
                counter.add(piece)
                draft.file.write(piece)

            waiting = bytearray()
            async for chunk in chunks:
                size += len(chunk)
                if size > limit_bytes:
                    raise TooLarge(f"The file has more than {limit_bytes:,} bytes; split it.", param="file")
                waiting += chunk
                if len(waiting) >= _WRITE_BYTES:
                    await asyncio.to_thread(write, bytes(waiting))
                    waiting.clear()
            await asyncio.to_thread(write, bytes(waiting))
            await asyncio.to_thread(draft.to_disk)
            draft.publish()
        return Stored(file_id, size, counter.lines)

    @contextmanager
    def writing(self, file_id: str) -> Iterator[SealedWriter]:
        """A new file that appears whole, or not at all when the block fails."""
        with self.draft(file_id) as draft:
            yield draft.file
            draft.publish()

    @contextmanager
    def draft(self, file_id: str) -> Iterator[Draft]:
        """A new file that appears whole when it is published, or not at all."""
        target = self.location(file_id)
        partial = self.directory / f"{_PARTIAL}{file_id}-{secrets.token_hex(4)}"
        try:
            with partial.open("wb") as file:
                yield Draft(SealedWriter(file, self._seals, file_id), partial, target)
        finally:
            partial.unlink(missing_ok=True)

    async def read(self, path: str) -> AsyncIterator[bytes]:
        """
        Raises:
            NotFound: its bytes are gone.
            BrokenSeal: they aren't what was written.
        """
        file = await asyncio.to_thread(self.open, path)
        with file:
            while piece := await asyncio.to_thread(file.read, _READ_BYTES):
                yield piece

    def open(self, path: str) -> BinaryIO:
        """
        Raises:
            NotFound: its bytes are gone.
            BrokenSeal: they aren't what was written; also raised by reading.
        """
        try:
            return sealed_reader(self.location(path).open("rb"), self._seals, path)
        except FileNotFoundError:
            raise NotFound("The file's content is gone from the files directory.") from None

    def remove(self, path: str) -> None:
        self.location(path).unlink(missing_ok=True)

    def sweep(self, now_s: float, *, older_s: float = 86_400) -> None:
        """Removes what crashed writers left behind."""
        for partial in self.directory.glob(f"{_PARTIAL}*"):
            try:
                if partial.stat().st_mtime < now_s - older_s:
                    partial.unlink(missing_ok=True)
            except FileNotFoundError:
                continue
