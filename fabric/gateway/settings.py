"""What a gateway process needs to be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fabric.batches.expand import Limits
from fabric.contracts.catalog import Catalog
from fabric.contracts.secret import Secrets
from fabric.settings.watch import Watch
from fabric.store.disk import Disk
from fabric.store.transitions import LIVE_LIMIT
from fabric.tracing import Tracer


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    catalog: Catalog
    redis_url: str
    database_url: str  #: SQLAlchemy URL of the ledger, already migrated
    files_dir: Path  #: batch input and output files; shared between gateways
    #: The embedded store's; ``None``: the store is elsewhere.
    disk: Disk | None = None
    #: The same in every process that works on the ledger; without, nobody else knows what is sealed here.
    secrets: Secrets = field(default_factory=Secrets.passing)
    #: Whether callers without a key are let in as long as no key was ever made.
    may_be_open: bool = True

    #: Looks whether the configuration file has changed; ``None``: it never does.
    watch: Watch | None = None
    #: Where spans go; ``None``: nowhere.
    tracer: Tracer | None = None
    #: Larger prompts are possible with more; every request in flight may hold this much memory.
    body_limit_bytes: int = 10_000_000
    file_limit_bytes: int = 200_000_000
    #: Lines of a batch input file.
    line_limit: int = Limits().lines
    #: How long an inference request may take when it names no deadline of its own.
    request_timeout_s: float = 600.0
    #: How long a request with an Idempotency-Key may be away before its job is cancelled. Shorter frees the
    #: engine sooner; longer lets clients with slow retries come back to the same job.
    return_s: float = 3.0
    #: How long a store that doesn't answer is waited for before the caller gets a 503.
    store_timeout_s: float = 1.5
    #: Accepted jobs that haven't ended, of all gateways together; beyond it callers get a 429.
    live_limit: int = LIVE_LIMIT
    #: Silence on a stream after which a comment is sent, so that proxies keep it open.
    keep_alive_s: float = 15.0
