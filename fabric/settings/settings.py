"""What a process of the fabric needs to know, resolved: absolute paths, whole URLs."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from fabric.contracts.breaker import Breaker
from fabric.contracts.budget import Budget
from fabric.contracts.catalog import Baseline, Catalog, Model, PrivacyRules, TenantWeights, Tier, TierCost
from fabric.contracts.limits import TenantLimits
from fabric.contracts.policy import DEFAULT_POLICY, Policy, PolicyName
from fabric.contracts.rule import Rule, RuleHeaders, ZoneName
from fabric.contracts.webhook import Webhook
from fabric.settings import tls

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
RedisUrl = Annotated[str, StringConstraints(pattern=r"^(rediss?|unix)://")]
BrokerUrl = Annotated[str, StringConstraints(pattern=r"^(rediss?|redis\+socket|amqps?|pyamqp)://")]
DatabaseUrl = Annotated[str, StringConstraints(pattern=r"^(sqlite|postgres(ql)?)(\+[a-z0-9]+)?://")]

#: Kernels refuse longer paths for unix sockets: 108 bytes on Linux, 104 on macOS, with the final zero.
SOCKET_PATH_LIMIT = 100


class Options(BaseModel):
    """The settings of a process, each also an environment variable: ``host`` is ``FABRIC_HOST``."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    host: str = Field("127.0.0.1", min_length=1)
    #: 0 lets ``fabric up`` choose a free one; it is in ``run.json`` of the data directory.
    port: int = Field(8080, ge=0, le=65535)
    #: Lets the API listen beyond loopback without keys: for where a port mapping or a network policy
    #: keeps strangers out.
    allow_open: bool = False
    #: Lets it listen there without TLS: for where a proxy in front of it speaks TLS.
    allow_plaintext: bool = False
    #: PEM files; both or none. With them the API speaks TLS and nothing else.
    tls_cert: Path | None = None
    tls_key: Path | None = None
    #: What API keys are hashed, the audit trail and files of batches are sealed with; ``new,old`` while it changes.
    #: Without one, it is made and kept in the data directory. Never shown.
    secret: str | None = Field(None, repr=False)
    #: What a worker opens its jobs with, where it hasn't the secret. Never shown.
    zone_keys: str | None = Field(None, repr=False)
    #: The same, in a file.
    zone_keys_file: Path | None = None
    #: Everything that a run writes.
    data_dir: Path = Path(".fabric")
    #: Without one, ``fabric up`` runs a Valkey of its own. URLs may hold passwords: never shown.
    redis_url: RedisUrl | None = Field(None, repr=False)
    broker_url: BrokerUrl | None = Field(None, repr=False)
    database_url: DatabaseUrl | None = Field(None, repr=False)
    #: PEM files of the authorities that have signed the certificates at ``redis_url`` and at ``broker_url``, for
    #: ``rediss://`` and ``amqps://``. Without one: those that the system trusts.
    redis_ca: Path | None = None
    broker_ca: Path | None = None
    #: PEM files, both or none: what this process shows to servers that want to know who comes.
    redis_cert: Path | None = None
    redis_key: Path | None = None
    broker_cert: Path | None = None
    broker_key: Path | None = None
    files_dir: Path | None = None
    log_level: LogLevel = "INFO"
    #: How long a stopping process may take to finish what it holds. Longer loses fewer attempts to a
    #: restart; shorter stops sooner. No job is lost either way.
    drain_s: float = Field(30.0, ge=0, le=3600)
    #: How long the ledger keeps a row for each attempt; sums by hour and day stay. Without it: for good.
    usage_retention_days: int | None = Field(None, ge=1)
    #: In MiB. With less free on the disk of an embedded store new work is refused: more is safer when other programs
    #: fill the disk, too; less uses it up to the end.
    disk_reserve_mb: int = Field(256, ge=0)


class Document(Options):
    """What ``fabric.yaml`` may hold."""

    models: tuple[Model, ...] = Field((), min_length=1)
    privacy: PrivacyRules = PrivacyRules()
    policies: dict[PolicyName, Policy] = Field(default_factory=dict)
    #: For requests that name none.
    default_policy: str = DEFAULT_POLICY
    rules: tuple[Rule, ...] = ()
    rule_headers: RuleHeaders = ()
    rule_timezone: ZoneName = "UTC"
    #: Of every deployment that doesn't say otherwise.
    breaker: Breaker = Breaker()
    #: What hours of workers cost.
    tiers: dict[Tier, TierCost] = Field(default_factory=dict)
    #: What savings are counted against where nothing better is known.
    baseline: Baseline | None = None
    budgets: tuple[Budget, ...] = ()
    #: Shares of the work while several tenants wait; of others 1.
    tenant_weights: TenantWeights = Field(default_factory=dict)
    #: How much a tenant may ask for; ``*``: each of the others.
    tenant_limits: TenantLimits = Field(default_factory=dict)
    #: Who is told that jobs and batches have ended. Read by recorders when they start.
    webhooks: tuple[Webhook, ...] = ()

    @field_validator("webhooks")
    @classmethod
    def _webhooks_have_names_of_their_own(cls, hooks: tuple[Webhook, ...]) -> tuple[Webhook, ...]:
        names = [hook.name for hook in hooks]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"webhook name used twice: {', '.join(twice)}")
        return hooks


class Settings(BaseModel):
    """Resolved: nothing here is optional or relative."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str
    port: int
    allow_open: bool
    allow_plaintext: bool
    tls_cert: Path | None
    tls_key: Path | None
    secret: str | None = Field(repr=False)
    zone_keys: str | None = Field(None, repr=False)
    zone_keys_file: Path | None = None
    data_dir: Path
    redis_url: str = Field(repr=False)
    broker_url: str = Field(repr=False)
    database_url: str = Field(repr=False)
    files_dir: Path
    log_level: LogLevel
    drain_s: float
    usage_retention_days: int | None = None
    disk_reserve_mb: int = 256
    catalog: Catalog
    webhooks: tuple[Webhook, ...] = ()
    #: The socket of the embedded Valkey; ``None`` when Redis runs elsewhere.
    socket: Path | None
    #: The file that was read, if any.
    config: Path | None


def resolve(options: Options, catalog: Catalog, config: Path | None, webhooks: tuple[Webhook, ...] = ()) -> Settings:
    data_dir = options.data_dir.absolute()
    socket = None if options.redis_url else socket_path(data_dir)
    redis_url = tls.with_ca(options.redis_url or f"unix://{socket}?db=0", options.redis_ca, "FABRIC_REDIS_CA")
    # A process that has no user at the broker is given no URL of it; the authority may be in everybody's environment.
    redis_url = tls.with_certificate(redis_url, options.redis_cert, options.redis_key, "FABRIC_REDIS")
    broker_url = options.broker_url and tls.with_ca(options.broker_url, options.broker_ca, "FABRIC_BROKER_CA")
    if broker_url:
        broker_url = tls.with_certificate(broker_url, options.broker_cert, options.broker_key, "FABRIC_BROKER")
    return Settings(
        host=options.host,
        port=options.port,
        allow_open=options.allow_open,
        allow_plaintext=options.allow_plaintext,
        tls_cert=options.tls_cert,
        tls_key=options.tls_key,
        secret=options.secret,
        zone_keys=options.zone_keys,
        zone_keys_file=options.zone_keys_file,
        data_dir=data_dir,
        redis_url=redis_url,
        broker_url=broker_url or broker_on(redis_url),
        database_url=_driver(options.database_url or f"sqlite:///{data_dir / 'ledger.sqlite3'}"),
        files_dir=(options.files_dir or data_dir / "files").absolute(),
        log_level=options.log_level,
        drain_s=options.drain_s,
        usage_retention_days=options.usage_retention_days,
        disk_reserve_mb=options.disk_reserve_mb,
        catalog=catalog,
        webhooks=webhooks,
        socket=socket,
        config=config,
    )


def socket_path(data_dir: Path) -> Path:
    """The embedded Valkey's socket: in ``data_dir``, or where that is too deep in a short folder of its
    own, named after ``data_dir`` so that every process finds it."""
    socket = data_dir / "valkey.sock"
    if len(os.fsencode(socket)) <= SOCKET_PATH_LIMIT:
        return socket
    digest = hashlib.blake2b(os.fsencode(data_dir), digest_size=8).hexdigest()
    return Path(f"/tmp/fabric-{os.getuid()}-{digest}/valkey.sock")  # noqa: S108  (made private by its maker)


def broker_on(redis_url: str) -> str:
    """Database 1 of the same server, as Celery names it."""
    address, _, query = redis_url.partition("?")
    scheme, _, place = address.partition("://")
    others = [part for part in query.split("&") if part and not part.startswith("db=")]
    if scheme == "unix":
        return f"redis+socket://{place}?{'&'.join([*others, 'virtual_host=1'])}"
    host = place.partition("/")[0]
    return f"{scheme}://{host}/1" + (f"?{'&'.join(others)}" if others else "")


def _driver(url: str) -> str:
    """PostgreSQL is spoken through psycopg 3, whatever way the URL names it."""
    scheme, _, rest = url.partition("://")
    return f"postgresql+psycopg://{rest}" if scheme in ("postgres", "postgresql") else url
