"""Statements about files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, and_, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from fabric.contracts.errors import Conflict, NotFound
from fabric.ledger.tables import batches, files

#: Batches that may still read their input file.
_UNFINISHED = ("validating", "in_progress", "finalizing", "cancelling")


@dataclass(frozen=True, slots=True)
class File:
    """``path``: name inside the files directory. ``lines``: those that aren't blank, of batch files."""

    id: str
    tenant: str
    purpose: str
    filename: str
    bytes: int
    lines: int | None
    path: str
    created_ms: int
    deleted_ms: int | None = None


def file_object(file: File) -> dict[str, Any]:
    """The file as the OpenAI API shows it."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.created_ms // 1000,
        "expires_at": None,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


def create(connection: Connection, file: File) -> None:
    """Stores a file whose bytes are on disk. The same file again changes nothing."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    row = asdict(file) | {"filename": _printable(file.filename)}
    connection.execute(insert(files).on_conflict_do_nothing(), row)


def _printable(filename: str) -> str:
    """PostgreSQL takes no zero bytes in text, and no encoding takes half a character."""
    return filename.replace("\0", "").encode("utf-8", "replace").decode()


def get(connection: Connection, tenant: str, file_id: str) -> File:
    """
    Raises:
        NotFound: there is no such file, it was deleted, or it is another tenant's.
    """
    query = select(files).where(files.c.id == file_id, files.c.tenant == tenant, files.c.deleted_ms.is_(None))
    # A file that is being deleted can't become the input of a batch, and the other way round.
    row = connection.execute(query.with_for_update(read=True)).first()
    if row is None:
        raise NotFound(f"No such File object: {file_id}", param="id")
    return File(**row._mapping)


def find(connection: Connection, file_id: str) -> File | None:
    """Any tenant's file, deleted or not."""
    row = connection.execute(select(files).where(files.c.id == file_id)).first()
    return File(**row._mapping) if row else None


def page(
    connection: Connection,
    tenant: str,
    *,
    limit: int,
    after: str | None = None,
    purpose: str | None = None,
    oldest_first: bool = False,
) -> tuple[list[File], bool]:
    """Files, newest first, those behind the file ``after``; and whether there are more.

    Raises:
        NotFound: there is no file ``after``.
    """
    query = select(files).where(files.c.tenant == tenant, files.c.deleted_ms.is_(None))
    if purpose is not None:
        query = query.where(files.c.purpose == purpose)
    created, identity = files.c.created_ms, files.c.id
    if after is not None:
        where = (identity == after, files.c.tenant == tenant)  # a deleted file still marks its place
        mark = connection.execute(select(created).where(*where)).scalar()
        if mark is None:
            raise NotFound(f"No such File object: {after}", param="after")
        if oldest_first:
            query = query.where(or_(created > mark, and_(created == mark, identity > after)))
        else:
            query = query.where(or_(created < mark, and_(created == mark, identity < after)))
    order = (created, identity) if oldest_first else (created.desc(), identity.desc())
    rows = connection.execute(query.order_by(*order).limit(limit + 1)).all()
    return [File(**row._mapping) for row in rows[:limit]], len(rows) > limit


def delete(connection: Connection, tenant: str, file_id: str, now_ms: int) -> File:
    """Marks the file as deleted; its bytes may go from the disk after the transaction.

    Raises:
        NotFound: there is no such file.
        Conflict: a batch that hasn't ended still reads it.
    """
    file = get(connection, tenant, file_id)
    connection.execute(update(files).where(files.c.id == file_id).values(deleted_ms=now_ms))
    reader = connection.execute(
        select(batches.c.id).where(batches.c.input_file_id == file_id, batches.c.status.in_(_UNFINISHED)).limit(1)
    ).scalar()
    if reader is not None:
        raise Conflict(f"The file is the input of {reader}, which hasn't ended. Wait for it or cancel it first.")
    return file
