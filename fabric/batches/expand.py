"""From an input file to lines in the ledger, a chunk at a time: bounded memory, other work in between.

Each chunk is a transaction of its own. After a crash the file is read again from its start; lines that
are there already stay as they are.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from sqlalchemy import Connection

from fabric.batches import request_line
from fabric.batches.grouping import Groups
from fabric.batches.request_line import BadLine
from fabric.batches.storage import Storage
from fabric.contracts.batch_line import error_line
from fabric.contracts.catalog import Catalog
from fabric.contracts.errors import NotFound
from fabric.contracts.ids import line_job_id
from fabric.contracts.key import Permissions
from fabric.ledger import Ledger, batches, files, lines
from fabric.ledger.batches import Batch
from fabric.ledger.lines import NewLine
from fabric.routing import policy_hash

log = logging.getLogger(__name__)

#: Lines and bytes of a chunk: more are fewer transactions, less are shorter pauses for other work.
_CHUNK_LINES = 1_000
_CHUNK_BYTES = 4_000_000


@dataclass(frozen=True, slots=True)
class Limits:
    """What an input file may hold. A line is a body and the little around it."""

    lines: int = 50_000
    line_bytes: int = 10_010_000


@dataclass(frozen=True, slots=True)
class RawLine:
    """``text`` is ``None`` for a line over the limit."""

    number: int
    start: int
    length: int
    text: bytes | None


def expand(
    ledger: Ledger, storage: Storage, catalog: Catalog, batch: Batch, limits: Limits, now_ms: Callable[[], int]
) -> Iterator[None]:
    """Brings a batch from ``validating`` to ``in_progress``, or to ``failed`` when its file is no batch at all.

    Raises:
        Unavailable: the ledger is away; begin again.
    """
    file = ledger.read(files.find, batch.input_file_id)
    if file is not None and file.lines is not None and file.lines > limits.lines:
        ledger.write(batches.fail, batch.id, [_too_many(limits)], now_ms())
        return
    try:
        source = storage.open(file.path if file else batch.input_file_id)
    except NotFound as error:
        ledger.write(batches.fail, batch.id, [_problem(error.message, "file_not_found", "input_file_id")], now_ms())
        return
    with source:
        groups = Groups(batch, catalog, policy_hash(catalog), now_ms()) if batch.planned else None
        checker = _Checker(batch, catalog, limits, groups)
        chunk: list[NewLine] = []
        size = 0
        for raw in read_lines(source, limits.line_bytes):
            if checker.count == limits.lines:
                ledger.write(batches.fail, batch.id, [_too_many(limits)], now_ms())
                return
            chunk.append(checker.checked(raw))
            size += raw.length
            if len(chunk) == _CHUNK_LINES or size >= _CHUNK_BYTES:
                if not ledger.write(_add, batch.id, chunk):
                    return
                chunk, size = [], 0
                yield
    if ledger.write(_begin, batch.id, chunk, now_ms(), groups):
        log.info("%s begins with %d lines", batch.id, checker.count)


def _add(connection: Connection, batch_id: str, chunk: list[NewLine]) -> bool:
    """Not if the batch has moved on: cancelled, or another process was quicker."""
    held = batches.hold(connection, [batch_id]).get(batch_id)
    if held is None or held.status != "validating":
        return False
    lines.add(connection, batch_id, chunk)
    return True


def _begin(
    connection: Connection, batch_id: str, rest: list[NewLine], now_ms: int, groups: Groups | None = None
) -> bool:
    if not _add(connection, batch_id, rest):
        return False
    if groups is not None:
        lines.add_groups(connection, batch_id, groups.dump())
    # Counted, not remembered: lines of an earlier start may have met another catalogue.
    counts = lines.counts(connection, batch_id)
    total = sum(counts.values())
    if not total:
        batches.fail(
            connection, batch_id, [_problem("The input file is empty.", "empty_file", "input_file_id")], now_ms
        )
        return False
    failed = counts.get("failed", 0)
    return batches.advance(
        connection, batch_id, "validating", "in_progress", total=total, failed=failed, in_progress_ms=now_ms
    )


class _Checker:
    """Remembers which ``custom_id``s came before, as 8 bytes each."""

    def __init__(self, batch: Batch, catalog: Catalog, limits: Limits, groups: Groups | None = None) -> None:
        self.count = 0
        self._groups = groups
        self._batch = batch
        self._permissions = Permissions.load(batch.permissions)
        self._catalog = catalog
        self._limits = limits
        self._seen: set[bytes] = set()

    def checked(self, raw: RawLine) -> NewLine:
        self.count += 1
        try:
            if raw.text is None:
                raise request_line.too_long(self._limits.line_bytes)
            try:
                custom_id, request = request_line.read_line(
                    raw.text, self._batch.endpoint, self._catalog, self._permissions
                )
            except BadLine as bad:
                self._remember(bad.custom_id)
                raise
            self._remember(custom_id)
        except BadLine as bad:
            job_id = line_job_id(self._batch.id, raw.number)
            error = error_line(bad.custom_id, job_id, raw.number, bad.error, answered=bad.answered)
            return NewLine(raw.number, bad.custom_id, raw.start, raw.length, "failed", error)
        group_no = None if self._groups is None else self._groups.number(request)
        return NewLine(raw.number, custom_id, raw.start, raw.length, "open", group_no=group_no)

    def _remember(self, custom_id: str | None) -> None:
        if custom_id is None:
            return
        digest = hashlib.blake2b(custom_id.encode(), digest_size=8).digest()
        if digest in self._seen:
            raise request_line.duplicate(custom_id) from None
        self._seen.add(digest)


def read_lines(source: BinaryIO, line_bytes: int) -> Iterator[RawLine]:
    """The lines that aren't blank. One that is too long is never held in memory."""
    number = start = 0
    while piece := source.readline(line_bytes + 1):
        number += 1
        length = len(piece)
        text: bytes | None = piece
        while length > line_bytes and not piece.endswith(b"\n"):
            text = None
            piece = source.readline(1 << 16)
            length += len(piece)
            if not piece:
                break
        if text is None or not text.isspace():
            yield RawLine(number, start, length, text)
        start += length


def _too_many(limits: Limits) -> dict[str, str | int | None]:
    message = f"The input file has more than {limits.lines:,} lines; split it."
    return _problem(message, "too_many_tasks", "input_file_id")


def _problem(message: str, code: str, param: str) -> dict[str, str | int | None]:
    """One entry of a failed batch's ``errors``."""
    return {"code": code, "message": message, "param": param, "line": None}
