"""Everything that ``fabric security init`` writes, as texts: who wants other passwords calls it again."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Set
from dataclasses import dataclass

from fabric.contracts.secret import Secrets
from fabric.contracts.signed import Signer
from fabric.contracts.terms import Tier
from fabric.contracts.zones import WorkerKeys
from fabric.security import rabbitmq, redis_acl
from fabric.security.roles import GATEWAY, RECORDER, ROLES, SCHEDULER, WORKERS, Role, env_file

ACL_FILE = "redis.acl"
DEFINITIONS = "rabbitmq.json"


def is_a_servers(name: str) -> bool:
    """Whether Redis or RabbitMQ read the file: the others are for processes of the fabric."""
    return name in (ACL_FILE, DEFINITIONS) or name.endswith((".pem", ".key"))


@dataclass(frozen=True, slots=True)
class Access:
    """Where the servers are, without users. ``rabbitmq_url``: empty where Redis carries messages, too."""

    redis_url: str
    rabbitmq_url: str = ""


def files(access: Access, secret: str, zones: Mapping[Tier, Set[str]]) -> dict[str, str]:
    """Name -> content. Passwords are new ones, 256 random bits each, and other ones in Redis than in RabbitMQ.

    ``secret``: the fabric's. ``zones``: trust zones of each tier's workers, who get keys of those and not the secret.
    The scheduler gets those that it signs with.
    """
    sealing = _sealing(secret, zones)
    in_redis = {role: secrets.token_urlsafe(32) for role in ROLES}
    written = {ACL_FILE: redis_acl.acl_file(in_redis)}
    in_rabbitmq: dict[Role, str] = {}
    if access.rabbitmq_url:
        in_rabbitmq = {role: secrets.token_urlsafe(32) for role in rabbitmq.USERS}
        salts = {role: secrets.token_bytes(4) for role in rabbitmq.USERS}
        written[DEFINITIONS] = rabbitmq.definitions(access.rabbitmq_url, in_rabbitmq, salts)
    return written | {
        f"{role.name}.env": env_file(role, _variables(role, access, in_redis, in_rabbitmq) | sealing.get(role, {}))
        for role in ROLES
    }


def _sealing(secret: str, zones: Mapping[Tier, Set[str]]) -> dict[Role, dict[str, str]]:
    """What each role opens and seals jobs with, and signs messages."""
    secrets_ = Secrets.parse(secret)
    variables: dict[Role, dict[str, str]] = {role: {"FABRIC_SECRET": secret} for role in (GATEWAY, RECORDER)}
    variables[SCHEDULER] = {"FABRIC_ZONE_KEYS": Signer.of(secrets_).dump()}
    for role in WORKERS:
        if role.tier:
            variables[role] = {"FABRIC_ZONE_KEYS": WorkerKeys.of(secrets_, zones[role.tier]).dump()}
    return variables


def _variables(
    role: Role, access: Access, in_redis: Mapping[Role, str], in_rabbitmq: Mapping[Role, str]
) -> dict[str, str]:
    variables = {"FABRIC_REDIS_URL": redis_acl.with_user(access.redis_url, role, in_redis[role])}
    if role in in_rabbitmq:
        variables["FABRIC_BROKER_URL"] = redis_acl.with_user(access.rabbitmq_url, role, in_rabbitmq[role])
    return variables
