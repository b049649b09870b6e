"""From the lines' outcomes to the output and the error file, a page at a time.

May be done twice or by two processes at once: the files have fixed ids and come out the same, and only
who finds the batch still unfinished, under its lock, publishes them. When they are published the lines
leave the ledger: it keeps no answer longer than it has to. Counts stay in the batch, usage in its table.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import BinaryIO

import orjson
from sqlalchemy import Connection

from fabric.batches.input_file import open_input
from fabric.batches.storage import Draft, Storage
from fabric.contracts.answer import packed
from fabric.contracts.batch_line import error_line
from fabric.contracts.errors import ErrorInfo, FabricError
from fabric.contracts.ids import derived_id, line_job_id
from fabric.contracts.job_seals import HomeSeals
from fabric.ledger import Ledger, batches, files, lines
from fabric.ledger.batches import Batch, Status
from fabric.ledger.files import File
from fabric.ledger.lines import EndedLine

log = logging.getLogger(__name__)

_PAGE_LINES = 1_000
#: Answers may be large: pages shrink so that about this much is in memory.
_PAGE_BYTES = 4_000_000
_FIRST_PAGE = 16
_REMOVE_LINES = 2_000


class BatchExpired(FabricError):
    """A line's end when its batch ran out of time."""

    status, type, code, fault = 504, "timeout_error", "batch_expired", "policy"


class BatchCancelled(FabricError):
    """A line's end when its batch was cancelled."""

    status, type, code, fault = 499, "cancelled", "batch_cancelled", "caller"


_EXPIRED = BatchExpired("The batch's completion window ended before this line was run.").info
_CANCELLED = BatchCancelled("The batch was cancelled before this line was run.").info
_ENDS: dict[str, ErrorInfo] = {"expired": _EXPIRED, "cancelled": _CANCELLED}


def assemble(
    ledger: Ledger, storage: Storage, home: HomeSeals, batch: Batch, now_ms: Callable[[], int]
) -> Iterator[None]:
    """Brings a batch without open lines from ``finalizing`` or ``cancelling`` to its end.

    Raises:
        Unavailable: the ledger is away; begin again.
        OSError: the files can't be written; begin again when that is mended.
        NotFound: the input file is gone and the form of embeddings stands in it.
        BrokenSeal: an answer in the ledger isn't what the recorder put there, or the secret is another one.
    """
    with ExitStack() as stack:
        output = stack.enter_context(_part(storage, batch, "output"))
        errors = stack.enter_context(_part(storage, batch, "error"))
        source = _input(ledger, storage, batch)
        if source is not None:
            stack.enter_context(source)
        last, limit, expired = 0, _FIRST_PAGE, False
        while page := ledger.read(lines.ended, batch.id, after=last, limit=limit):
            size = 0
            for line in page:
                if line.state == "completed":
                    size += output.write(_answer(batch, line, home, source))
                else:
                    size += errors.write(_error(batch, line))
                    expired = expired or line.state == "expired"
            last = page[-1].line_no
            limit = max(1, min(_PAGE_LINES, 2 * limit, _PAGE_BYTES * len(page) // max(1, size)))
            yield
        end: Status = "cancelled" if batch.status == "cancelling" else "expired" if expired else "completed"
        parts = [part for part in (output, errors) if part.lines]
        for part in parts:
            part.draft.to_disk()
        if ledger.write(_publish, batch, end, parts, now_ms()):
            log.info("%s is %s: %d answers, %d errors", batch.id, end, output.lines, errors.lines)


def free(ledger: Ledger, batch_id: str) -> Iterator[None]:
    """Takes the lines of a batch that has ended out of the ledger."""
    batch = ledger.read(batches.find, batch_id)
    if batch is None or batch.status in batches.UNFINISHED:
        return
    while ledger.write(lines.remove, batch_id, limit=_REMOVE_LINES):
        yield


class _Part:
    """One of the two files while it is written."""

    def __init__(self, draft: Draft, file_id: str, kind: str) -> None:
        self.draft = draft
        self.file_id = file_id
        self.kind = kind
        self.lines = 0
        self.bytes = 0

    def write(self, line: bytes) -> int:
        self.draft.file.write(line + b"\n")
        self.lines += 1
        self.bytes += len(line) + 1
        return len(line) + 1


@contextmanager
def _part(storage: Storage, batch: Batch, kind: str) -> Iterator[_Part]:
    file_id = derived_id("file", batch.id, kind)
    with storage.draft(file_id) as draft:
        yield _Part(draft, file_id, kind)


def _publish(connection: Connection, batch: Batch, end: Status, parts: list[_Part], now_ms: int) -> bool:
    held = batches.hold(connection, [batch.id]).get(batch.id)
    if held is None or held.status != batch.status:
        return False
    named: dict[str, str] = {}
    for part in parts:
        # Before the commit: a file without its row is written again, a row without its file would be a lie.
        part.draft.publish()
        named[f"{part.kind}_file_id"] = part.file_id
        files.create(
            connection,
            File(
                id=part.file_id,
                tenant=batch.tenant,
                purpose="batch_output",
                filename=f"{batch.id}_{part.kind}.jsonl",
                bytes=part.bytes,
                lines=part.lines,
                path=part.file_id,
                created_ms=now_ms,
            ),
        )
    return batches.advance(connection, batch.id, batch.status, end, **named, **{f"{end}_ms": now_ms})


def _error(batch: Batch, line: EndedLine) -> bytes:
    if line.error is not None:
        return line.error
    job_id = line_job_id(batch.id, line.line_no)
    return error_line(line.custom_id, job_id, line.line_no, _ENDS[line.state], answered=False)


def _answer(batch: Batch, line: EndedLine, home: HomeSeals, source: BinaryIO | None) -> bytes:
    assert line.response is not None
    answer = home.opened_line(batch.id, line.line_no, line.response)
    if source is None or not _wants_base64(line, source):
        return answer
    values = orjson.loads(answer)
    values["response"]["body"] = orjson.Fragment(packed(orjson.dumps(values["response"]["body"])))
    return orjson.dumps(values)


def _input(ledger: Ledger, storage: Storage, batch: Batch) -> BinaryIO | None:
    """Embeddings only: which form of the numbers was asked for stands in the input file."""
    if batch.endpoint != "/v1/embeddings":
        return None
    return open_input(ledger, storage, batch)


def _wants_base64(line: EndedLine, source: BinaryIO) -> bool:
    source.seek(line.start)
    asked = orjson.loads(source.read(line.length))
    return bool(asked["body"].get("encoding_format") == "base64")
