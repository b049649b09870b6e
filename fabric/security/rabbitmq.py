"""Users of RabbitMQ, as the JSON that ``rabbitmqctl import_definitions`` and ``load_definitions`` take.

RabbitMQ knows three rights to names of queues and exchanges: to make and delete them (configure), to put something in
(write), to take something out (read). Binding a queue is writing to it and reading the exchange; messages that are
sent to a queue by its name are written to ``amq.default``, which of all roles the scheduler alone may do. So nobody
else can send anybody work.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from fabric.contracts.catalog import TIERS
from fabric.security.roles import ADMIN, MONITOR, SCHEDULER, WORKERS, Role

#: Who works with the broker at all, where RabbitMQ is it.
USERS = (SCHEDULER, *WORKERS, MONITOR, ADMIN)
_SALT_BYTES = 4
_DEAD = r"fabric\.dead"
_EVENTS, _CONTROL, _REPLIES = "celeryev", r"celery\.pidbox", r"reply\.celery\.pidbox"


@dataclass(frozen=True, slots=True)
class Permissions:
    """Regular expressions, each for whole names. ``topics``: routing keys of Celery's events that it may send."""

    configure: str
    write: str
    read: str
    topics: str = ""


def definitions(url: str, passwords: Mapping[Role, str], salts: Mapping[Role, bytes]) -> str:
    """``url``: of the broker; its path is the virtual host. ``salts``: 4 random bytes for each role."""
    vhost = vhost_of(url)
    return json.dumps(
        {
            "vhosts": [{"name": vhost}],
            "users": [_user(role, passwords[role], salts[role]) for role in USERS],
            "permissions": [_permissions(role, vhost) for role in USERS],
            "topic_permissions": [topics for role in USERS for topics in _topics(role, vhost)],
        },
        indent=2,
    )


def vhost_of(url: str) -> str:
    """As kombu reads it: ``amqps://host/fabric`` is ``fabric``; no path, or one slash more, is ``/``."""
    return unquote(urlsplit(url).path[1:]) or "/"


def permissions_of(role: Role) -> Permissions:
    if role == ADMIN:
        return Permissions(".*", ".*", ".*", ".*")
    if role == MONITOR:
        # Flower asks workers about themselves when it starts, and hears nothing if it may not; who may ask may tell.
        own = (rf"{_EVENTS}\..+", rf".+\.{_REPLIES}")
        exchanges = (_EVENTS, _CONTROL, _REPLIES)
        return Permissions(_whole(*own, *exchanges), _whole(*own, _CONTROL), _whole(*own, _EVENTS, _REPLIES), "^$")
    if role == SCHEDULER:
        queues = (rf"fabric\.({'|'.join(TIERS)})\..+", _DEAD)
        return Permissions(_whole(*queues), _whole(r"amq\.default", *queues), _whole(*queues))
    # Its tier's queues, and a queue of its own on which it hears Celery's tools.
    own = (rf"fabric\.{role.tier}\..+", rf"{role.tier}[^/]*@.+\.celery\.pidbox")
    return Permissions(
        configure=_whole(*own, _DEAD, _EVENTS, _CONTROL, _REPLIES),
        write=_whole(*own, _DEAD, _EVENTS, _REPLIES),
        read=_whole(*own, _DEAD, _CONTROL),
        topics=r"^(worker|task)\..+$",
    )


def _whole(*names: str) -> str:
    return f"^({'|'.join(names)})$"


def _user(role: Role, password: str, salt: bytes) -> dict[str, Any]:
    return {
        "name": role.user,
        "password_hash": hashed(password, salt),
        "hashing_algorithm": "rabbit_password_hashing_sha256",
        "tags": "administrator" if role == ADMIN else "",
    }


def hashed(password: str, salt: bytes) -> str:
    """RabbitMQ's form of SHA-256 (https://www.rabbitmq.com/docs/passwords): what comes of salt and password, behind the
    salt, in base 64."""
    if len(salt) != _SALT_BYTES:
        raise ValueError(f"RabbitMQ's salts have {_SALT_BYTES} bytes")
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def _permissions(role: Role, vhost: str) -> dict[str, str]:
    may = permissions_of(role)
    return {"user": role.user, "vhost": vhost, "configure": may.configure, "write": may.write, "read": may.read}


def _topics(role: Role, vhost: str) -> list[dict[str, str]]:
    topics = permissions_of(role).topics
    if not topics or role == ADMIN:
        return []
    return [{"user": role.user, "vhost": vhost, "exchange": _EVENTS, "write": topics, "read": ".*"}]
