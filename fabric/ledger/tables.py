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
    Column("permissions", Text),  # JSON object: what the key that made it permits; null: everything
    Column("options", Text),  # JSON object: deadline_s, max_cost_usd; null: it isn't planned as a whole
    Column("plan", Text),  # JSON object: the newest plan, as it is shown
    UniqueConstraint("tenant", "idempotency_key", name="uq_batches_idempotency"),
    Index("ix_batches_tenant_created", "tenant", "created_ms", "id"),
    Index("ix_batches_status", "status"),
    Index("ix_batches_input_file", "input_file_id"),
)

#: The rows of ``batch_lines`` that still need an outcome, worded as in the index below.
OPEN = text("state = 'open'")
#: Of a batch that is planned as a whole: open lines that were handed to the store, and those that weren't.
PLACED = text("state = 'open' AND place IS NOT NULL")
UNPLACED = text("state = 'open' AND place IS NULL AND group_no IS NOT NULL")

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
    # Of batches that are planned as a whole only:
    Column("group_no", Integer),  # lines that are alike
    Column("place", String(64)),  # the deployment that the plan had when the line was handed over
    Index("ix_batch_lines_open", "batch_id", "line_no", sqlite_where=OPEN, postgresql_where=OPEN),
    Index("ix_batch_lines_placed", "batch_id", "group_no", "place", sqlite_where=PLACED, postgresql_where=PLACED),
    Index(
        *("ix_batch_lines_unplaced", "batch_id", "group_no", "line_no"),
        sqlite_where=UNPLACED,
        postgresql_where=UNPLACED,
    ),
)

#: Lines of a batch that are alike, for its plan. Rows live as long as the batch's lines.
batch_groups = Table(
    "batch_groups",
    metadata,
    Column("batch_id", String(64), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("spec", Text, nullable=False),  # JSON: the job that stands for all of them
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
    # 1: the row is the end of its job. 0: an earlier attempt, or another end of one that was parked and replayed.
    Column("requests", Integer, nullable=False, server_default="1"),
    Column("estimated", Integer, nullable=False, server_default="0"),  # 1: tokens that no engine counted
    Column("served_model", String(128)),
    Column("policy_hash", String(64)),
    Column("price_version", String(64)),
    Column("machine_usd", Double, nullable=False, server_default="0"),  # the part of the cost that is machine time
    Column("cloud_equivalent_usd", Double, nullable=False, server_default="0"),  # 0: nothing to compare with
    Column("baseline_usd", Double, nullable=False, server_default="0"),
    Column("expected_cost_usd", Double),  # at the decision
    Column("deadline_ms", BigInteger),  # of the job, when it was accepted
    Index("ix_usage_tenant_finished", "tenant", "finished_ms", "job_id"),
    Index("ix_usage_batch", "batch_id", sqlite_where=OF_BATCH, postgresql_where=OF_BATCH),
)

#: What ``usage_sums`` keeps apart, in the order of its key: times first, so that new rows go to one end. ``tag`` is
#: empty in the sums of everything; in the others a row counts once for each of its tags. Texts that a row doesn't
#: have are empty; so are ``key_id`` and ``endpoint`` of all rows in ``brief``, which is by day and far shorter.
SUM_KEYS = ("period", "tag", "at_ms", "tenant", "key_id", "endpoint", "model", "tier", "deployment")
#: What is added up.
SUM_COUNTS = (
    *("requests", "failures", "attempts", "estimated", "input_tokens", "cached_input_tokens", "output_tokens"),
    "reasoning_tokens",
)
SUM_AMOUNTS = (
    *("engine_s", "cost_usd", "machine_usd", "cloud_equivalent_usd"),
    "compared_usd",  # cost of the rows that have a cloud equivalent
    "baseline_usd",
    *("expected_usd", "foreseen_usd", "missed_usd"),  # expected; actual of the same rows; sum of |one - other|
)

usage_sums = Table(
    "usage_sums",
    metadata,
    Column("period", String(8), primary_key=True),  # hour | day | brief
    Column("tag", String(64), primary_key=True),
    Column("at_ms", BigInteger, primary_key=True, autoincrement=False),  # its beginning, UTC
    Column("tenant", String(128), primary_key=True),
    Column("key_id", String(64), primary_key=True),
    Column("endpoint", String(64), primary_key=True),
    Column("model", String(128), primary_key=True),
    Column("tier", String(16), primary_key=True),
    Column("deployment", String(64), primary_key=True),
    *(Column(name, BigInteger, nullable=False) for name in SUM_COUNTS),
    *(Column(name, Double, nullable=False) for name in SUM_AMOUNTS),
    sqlite_with_rowid=False,
)

#: How long each worker was up in each hour, whether it worked or not.
worker_hours = Table(
    "worker_hours",
    metadata,
    Column("worker", String(64), primary_key=True),
    Column("hour_ms", BigInteger, primary_key=True, autoincrement=False),
    Column("tier", String(16), nullable=False),
    Column("slots", Integer, nullable=False),
    Column("up_s", Double, nullable=False),
    Column("usd_per_hour", Double, nullable=False),
    Index("ix_worker_hours_hour", "hour_ms"),
)

keys = Table(
    "keys",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("digest", LargeBinary(32), nullable=False, unique=True),  # of the key, under the fabric's secret
    Column("seal", LargeBinary(32), nullable=False),  # of the row, under the same
    Column("secret_id", String(16), nullable=False),  # which secret
    Column("prefix", String(16), nullable=False),  # the key's beginning, for people
    Column("tenant", String(128), nullable=False),
    Column("name", String(128)),
    Column("scopes", Text, nullable=False),  # JSON array
    Column("models", Text),  # JSON array; null: all
    Column("tiers", Text),  # JSON array; null: all
    Column("regions", Text),  # JSON array; null: all
    Column("privacy_floor", String(16)),
    Column("limits", Text),  # JSON object: rate limits; null: none
    Column("created_ms", BigInteger, nullable=False),
    Column("created_by", String(64), nullable=False),  # a key's id, or cli
    Column("replaces", String(64)),  # the key that this one was rotated from
    Column("expires_ms", BigInteger),
    Column("revoked_ms", BigInteger),
    Column("first_used_ms", BigInteger),
    Column("revision", BigInteger, nullable=False),  # grows with every change of the table
    Index("ix_keys_revision", "revision"),
    Index("ix_keys_tenant_created", "tenant", "created_ms", "id"),
)

audit = Table(
    "audit",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),  # from 1, without gaps
    Column("at_ms", BigInteger, nullable=False),
    Column("action", String(32), nullable=False),
    Column("actor", String(64), nullable=False),  # a key's id, cli or open
    Column("tenant", String(128)),
    Column("subject", String(128)),  # what it was done to: an id
    Column("detail", Text),  # JSON object
    Column("count", Integer, nullable=False),  # how many alike this row stands for
    Column("secret_id", String(16), nullable=False),
    Column("hash", LargeBinary(32), nullable=False),  # of this row and the hash before it
)

webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("id", String(160), primary_key=True),  # the webhook's name and the event's id
    Column("webhook", String(64), nullable=False),
    Column("event_id", String(64), nullable=False),
    Column("type", String(32), nullable=False),
    Column("tenant", String(128), nullable=False),
    Column("subject", String(64), nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("state", String(16), nullable=False),  # waiting | delivered | parked
    Column("tries", Integer, nullable=False, server_default="0"),
    Column("created_ms", BigInteger, nullable=False),
    Column("next_ms", BigInteger, nullable=False),
    Column("last_status", Integer),
    Column("last_error", Text),
    Column("ended_ms", BigInteger),
    Index("ix_webhook_deliveries_due", "state", "webhook", "next_ms"),
    Index("ix_webhook_deliveries_created", "created_ms", "id"),
)

# Batches that have ended and of which nobody has been told yet.
ended_batches = Table("ended_batches", metadata, Column("id", String(64), primary_key=True))
