"""Every table of the ledger. ``migrations/versions`` brings a database here, one step a file.

Times are milliseconds since the epoch. JSON is kept as text or bytes, written and read by orjson.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
    }
)

files = Table(
    "files",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant", String(128), nullable=False),
    Column("purpose", String(32), nullable=False),  # batch | batch_output
    Column("filename", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("lines", Integer),  # lines that aren't blank; of JSON Lines files only
    Column("path", Text, nullable=False),  # name inside the files directory
    Column("created_ms", BigInteger, nullable=False),
    Column("deleted_ms", BigInteger),
    Index("ix_files_tenant_created", "tenant", "created_ms", "id"),
)

batches = Table(
    "batches",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant", String(128), nullable=False),
    Column("key_id", String(64)),
    Column("endpoint", String(64), nullable=False),
    Column("input_file_id", String(64), nullable=False),
    Column("completion_window", String(16), nullable=False),
    Column("metadata", Text),  # JSON object
    Column("status", String(16), nullable=False),
    Column("total", Integer, nullable=False, server_default="0"),
    Column("completed", Integer, nullable=False, server_default="0"),
    Column("failed", Integer, nullable=False, server_default="0"),
    # Lines up to here were handed to the store; those among them that are still open wait or run.
    Column("fed_until", Integer, nullable=False, server_default="0"),
    Column("created_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),
    Column("in_progress_ms", BigInteger),
    Column("finalizing_ms", BigInteger),
    Column("completed_ms", BigInteger),
    Column("failed_ms", BigInteger),
    Column("expired_ms", BigInteger),
    Column("cancelling_ms", BigInteger),
    Column("cancelled_ms", BigInteger),
    Column("output_file_id", String(64)),
    Column("error_file_id", String(64)),
    Column("errors", Text),  # JSON array: why the whole batch failed
    Column("idempotency_key", String(256)),
    Column("fingerprint", String(128)),
    UniqueConstraint("tenant", "idempotency_key", name="uq_batches_idempotency"),
    Index("ix_batches_tenant_created", "tenant", "created_ms", "id"),
    Index("ix_batches_status", "status"),
    Index("ix_batches_input_file", "input_file_id"),
)

#: The rows of ``batch_lines`` that still need an outcome, worded as in the index below.
OPEN = text("state = 'open'")

batch_lines = Table(
    "batch_lines",
    metadata,
    Column("batch_id", String(64), primary_key=True),
    Column("line_no", Integer, primary_key=True, autoincrement=False),  # from 1, blank lines count
    Column("custom_id", Text),
    Column("start", BigInteger, nullable=False),  # where the line lies in the input file, in bytes
    Column("length", Integer, nullable=False),
    Column("state", String(16), nullable=False),  # open | completed | failed | expired | cancelled
    Column("response", LargeBinary),  # JSON, as in the output file
    Column("error", LargeBinary),  # JSON, as in the error file
    Index("ix_batch_lines_open", "batch_id", "line_no", sqlite_where=OPEN, postgresql_where=OPEN),
)

#: The rows of ``usage`` that are of batch lines, worded as in the index below.
OF_BATCH = text("batch_id IS NOT NULL")

usage = Table(
    "usage",
    metadata,
    Column("job_id", String(64), primary_key=True),
    Column("attempt", Integer, primary_key=True, autoincrement=False),  # 0: ended before any dispatch
    Column("tenant", String(128), nullable=False),
    Column("key_id", String(64)),
    Column("tags", Text),  # JSON array
    Column("endpoint", String(64), nullable=False),
    Column("model", String(128), nullable=False),
    Column("privacy", String(16), nullable=False),
    Column("priority", String(16), nullable=False),
    Column("policy", String(128)),
    Column("tier", String(16)),
    Column("deployment", String(64)),
    Column("worker", String(128)),
    Column("state", String(16), nullable=False),
    Column("fault", String(16)),
    Column("error_code", String(64)),
    Column("input_tokens", BigInteger, nullable=False),
    Column("cached_input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("cost_usd", Double, nullable=False),
    Column("engine_s", Double, nullable=False),
    Column("first_token_s", Double),
    Column("accepted_ms", BigInteger, nullable=False),
    Column("dispatched_ms", BigInteger),
    Column("claimed_ms", BigInteger),
    Column("finished_ms", BigInteger, nullable=False),
    Column("batch_id", String(64)),
    Column("line_no", Integer),
    Index("ix_usage_tenant_finished", "tenant", "finished_ms", "job_id"),
    Index("ix_usage_batch", "batch_id", sqlite_where=OF_BATCH, postgresql_where=OF_BATCH),
)
