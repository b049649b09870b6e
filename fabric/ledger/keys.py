"""Statements about API keys. The key itself is never stored: its keyed hash is, and it finds the row.

Rows carry a seal (HMAC under the fabric's secret) over what they permit. Who can only write to the
database can delete a key; they can't make one, widen one or undo a revocation without the seal failing.
Every change is a row of the audit trail, in the same transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import orjson
from sqlalchemy import Connection, Row, and_, func, insert, or_, select, text, update

from fabric.contracts.catalog import Privacy, Tier
from fabric.contracts.errors import ConfigError, Conflict, NotFound
from fabric.contracts.ids import new_id
from fabric.contracts.key import EVERYTHING, Permissions, Scope, new_key, prefix_of
from fabric.contracts.limits import KeyLimits
from fabric.contracts.secret import Secrets, Tag
from fabric.ledger import audit
from fabric.ledger.audit import Event
from fabric.ledger.tables import keys

#: Any number that no other user of the same PostgreSQL database takes.
_LOCK = 0x666B657973
State = Literal["active", "expired", "revoked"]


@dataclass(frozen=True, slots=True)
class NewKey:
    """Times: milliseconds since the epoch. ``created_by``: a key's id, or ``cli``."""

    tenant: str
    scopes: tuple[Scope, ...]
    created_ms: int
    created_by: str
    name: str | None = None
    permissions: Permissions = EVERYTHING
    expires_ms: int | None = None
    replaces: str | None = None


@dataclass(frozen=True, slots=True)
class Key:
    """A row, without its hash. ``prefix``: the key's beginning, for people."""

    id: str
    prefix: str
    tenant: str
    name: str | None
    scopes: tuple[Scope, ...]
    permissions: Permissions
    created_ms: int
    created_by: str
    replaces: str | None
    expires_ms: int | None
    revoked_ms: int | None
    first_used_ms: int | None
    digest: bytes
    secret_id: str
    seal: bytes
    revision: int

    def state(self, now_ms: int) -> State:
        if self.revoked_ms is not None:
            return "revoked"
        return "expired" if self.expires_ms is not None and self.expires_ms <= now_ms else "active"

    def sealed(self) -> bytes:
        """What the seal is of: all that decides who may do what, and until when."""
        return orjson.dumps(
            (
                *(self.id, self.digest.hex(), self.tenant, self.scopes, self.permissions.dump()),
                *(self.created_ms, self.expires_ms, self.revoked_ms),
            )
        )

    def genuine(self, secrets: Secrets) -> bool:
        """Whether the row was written by somebody who holds the fabric's secret."""
        return secrets.vouches("seal", self.sealed(), Tag(self.secret_id, self.seal))


def key_object(key: Key, now_ms: int) -> dict[str, Any]:
    """The key as the API shows it. Times: seconds since the epoch."""
    permissions = key.permissions
    return {
        "id": key.id,
        "object": "key",
        "prefix": key.prefix,
        "tenant": key.tenant,
        "name": key.name,
        "state": key.state(now_ms),
        "scopes": key.scopes,
        "models": permissions.models,
        "tiers": permissions.tiers,
        "regions": permissions.regions,
        "privacy_floor": permissions.privacy_floor,
        **{name: getattr(permissions.limits, name, None) for name in KeyLimits.model_fields},
        "created_at": key.created_ms // 1000,
        "expires_at": _seconds(key.expires_ms),
        "revoked_at": _seconds(key.revoked_ms),
        "first_used_at": _seconds(key.first_used_ms),
        "replaces": key.replaces,
    }


def _seconds(ms: int | None) -> int | None:
    return None if ms is None else ms // 1000


def create(connection: Connection, secrets: Secrets, new: NewKey) -> tuple[Key, str]:
    """Makes a key; answers its row and the key itself, which nobody can read again.

    Raises:
        ConfigError: the keys that there are were made under another secret.
    """
    _take_turns(connection)
    _same_secret(connection, secrets)
    made, key = _insert(connection, secrets, new)
    _write_down(connection, secrets, "key.created", made, new.created_by, new.created_ms)
    return made, key


def _insert(connection: Connection, secrets: Secrets, new: NewKey) -> tuple[Key, str]:
    key = new_key()
    row = Key(
        id=new_id("key"),
        prefix=prefix_of(key),
        tenant=new.tenant,
        name=new.name,
        scopes=new.scopes,
        permissions=new.permissions,
        created_ms=new.created_ms,
        created_by=new.created_by,
        replaces=new.replaces,
        expires_ms=new.expires_ms,
        revoked_ms=None,
        first_used_ms=None,
        digest=secrets.digest(key.encode()),
        secret_id=secrets.id,
        seal=b"",
        revision=_next_revision(connection),
    )
    row = replace(row, seal=secrets.tag("seal", row.sealed()).value)
    connection.execute(insert(keys), _values(row))
    return row, key


def _values(key: Key) -> dict[str, Any]:
    permissions = key.permissions
    plain = {name: getattr(key, name) for name in Key.__slots__ if name not in ("scopes", "permissions")}
    return plain | {
        "scopes": orjson.dumps(key.scopes).decode(),
        "models": _listed(permissions.models),
        "tiers": _listed(permissions.tiers),
        "regions": _listed(permissions.regions),
        "privacy_floor": permissions.privacy_floor,
        "limits": permissions.limits.model_dump_json(exclude_none=True, exclude_defaults=True)
        if permissions.limits
        else None,
    }


def _listed(values: Sequence[str] | None) -> str | None:
    return None if values is None else orjson.dumps(values).decode()


def _key(row: Row[Any]) -> Key:
    values = dict(row._mapping)
    models, tiers, regions = (_tuple(values.pop(name)) for name in ("models", "tiers", "regions"))
    floor: Privacy | None = values.pop("privacy_floor")
    limits: str | None = values.pop("limits")
    allowed: tuple[Tier, ...] | None = tiers
    values["permissions"] = Permissions(
        models, allowed, regions, floor, KeyLimits.model_validate_json(limits) if limits else None
    )
    values["scopes"] = tuple(orjson.loads(values["scopes"]))
    values["digest"], values["seal"] = bytes(values["digest"]), bytes(values["seal"])
    return Key(**{name: values[name] for name in Key.__slots__})


def _tuple(text: str | None) -> Any:
    return None if text is None else tuple(orjson.loads(text))


def get(connection: Connection, key_id: str) -> Key:
    """
    Raises:
        NotFound: there is no such key.
    """
    row = connection.execute(select(keys).where(keys.c.id == key_id)).first()
    if row is None:
        raise NotFound(f"There is no key {key_id[:64]!r}.", param="key_id")
    return _key(row)


def page(
    connection: Connection, *, limit: int, after: str | None = None, tenant: str | None = None
) -> tuple[list[Key], bool]:
    """Keys of one tenant or of all, newest first, those older than ``after``; and whether there are more.

    Raises:
        NotFound: there is no key ``after``.
    """
    query = select(keys)
    if tenant is not None:
        query = query.where(keys.c.tenant == tenant)
    if after is not None:
        mark = get(connection, after).created_ms
        same = and_(keys.c.created_ms == mark, keys.c.id < after)
        query = query.where(or_(keys.c.created_ms < mark, same))
    rows = connection.execute(query.order_by(keys.c.created_ms.desc(), keys.c.id.desc()).limit(limit + 1)).all()
    return [_key(row) for row in rows[:limit]], len(rows) > limit


def revoke(connection: Connection, secrets: Secrets, key_id: str, now_ms: int, actor: str) -> Key:
    """Ends a key, for good. Twice is once.

    Raises:
        NotFound: there is no such key.
        ConfigError: it was made under another secret.
    """
    _take_turns(connection)
    key = get(connection, key_id)
    if key.revoked_ms is not None:
        return key
    key = _change(connection, secrets, replace(key, revoked_ms=now_ms))
    _write_down(connection, secrets, "key.revoked", key, actor, now_ms)
    return key


def rotate(
    connection: Connection, secrets: Secrets, key_id: str, now_ms: int, actor: str, *, overlap_ms: int = 0
) -> tuple[Key, str]:
    """A new key that may do the same for as long again; the old one ends after ``overlap_ms``.

    Raises:
        NotFound: there is no such key.
        Conflict: it has ended already.
        ConfigError: it was made under another secret.
    """
    _take_turns(connection)
    old = get(connection, key_id)
    if old.state(now_ms) != "active":
        raise Conflict(f"The key is {old.state(now_ms)}: make a new one.")
    lifetime = None if old.expires_ms is None else old.expires_ms - old.created_ms
    new = NewKey(
        tenant=old.tenant,
        scopes=old.scopes,
        created_ms=now_ms,
        created_by=actor,
        name=old.name,
        permissions=old.permissions,
        expires_ms=None if lifetime is None else now_ms + lifetime,
        replaces=old.id,
    )
    # The old one first: that it is genuine is checked there, before its rights are copied.
    if overlap_ms:
        ends = now_ms + overlap_ms
        _change(connection, secrets, replace(old, expires_ms=min(ends, old.expires_ms or ends)))
    else:
        _change(connection, secrets, replace(old, revoked_ms=now_ms))
    made, key = _insert(connection, secrets, new)
    _write_down(connection, secrets, "key.rotated", made, actor, now_ms)
    return made, key


def _change(connection: Connection, secrets: Secrets, key: Key) -> Key:
    """Writes the times at which a key ends, under a new seal, unless the row isn't what was written."""
    stored = get(connection, key.id)
    if not stored.genuine(secrets):
        if stored.secret_id not in secrets:
            raise _other_secret()
        raise Conflict("The key's row was changed by somebody without the fabric's secret: make a new key.")
    tag = secrets.tag("seal", key.sealed())
    key = replace(key, seal=tag.value, secret_id=tag.secret_id, revision=_next_revision(connection))
    # `secret_id` also says under which secret the digest was made; all of them are tried, so it may move on.
    names = ("expires_ms", "revoked_ms", "seal", "secret_id", "revision")
    connection.execute(update(keys).where(keys.c.id == key.id).values({name: getattr(key, name) for name in names}))
    return key


def used(connection: Connection, first: Mapping[str, int]) -> list[Event]:
    """Notes the first use of keys (id -> when); answers what is to be written down of it.

    Keys that were used before stay as they are. Rows are changed in one order, and before the audit trail is
    held: nobody waits in a circle.
    """
    events = []
    for key_id, at_ms in sorted(first.items()):
        statement = update(keys).where(keys.c.id == key_id, keys.c.first_used_ms.is_(None))
        if connection.execute(statement.values(first_used_ms=at_ms)).rowcount:
            events.append(_event("key.first_used", get(connection, key_id), key_id, at_ms))
    return events


def changed(connection: Connection, after: int) -> list[Key]:
    """Keys that were made or changed since revision ``after``, in order."""
    query = select(keys).where(keys.c.revision > after).order_by(keys.c.revision)
    return [_key(row) for row in connection.execute(query)]


def some(connection: Connection) -> bool:
    """Whether any key was ever made: a fabric that has had keys isn't open any more. Who empties the table doesn't
    open it, as the audit trail still knows of them."""
    there = connection.execute(select(keys.c.id).limit(1)).first() is not None
    return there or audit.last_detail(connection, "key.created") is not None


def _take_turns(connection: Connection) -> None:
    """Revisions become visible in their order: whoever reads one has seen all before it."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})


def _next_revision(connection: Connection) -> int:
    return int(connection.execute(select(func.coalesce(func.max(keys.c.revision), 0))).scalar_one()) + 1


def _same_secret(connection: Connection, secrets: Secrets) -> None:
    newest = connection.execute(select(keys.c.secret_id).order_by(keys.c.revision.desc()).limit(1)).scalar()
    if newest is not None and newest not in secrets:
        raise _other_secret()


def _other_secret() -> ConfigError:
    return ConfigError(
        "The keys in this ledger were made under another secret than this process has: give the same FABRIC_SECRET, "
        "or the same data directory, to every process that serves the API or manages keys."
    )


def _write_down(
    connection: Connection, secrets: Secrets, action: audit.Action, key: Key, actor: str, now_ms: int
) -> None:
    audit.append(connection, secrets, [_event(action, key, actor, now_ms)])


def _event(action: audit.Action, key: Key, actor: str, now_ms: int) -> Event:
    detail: dict[str, Any] = {"prefix": key.prefix}
    if action in ("key.created", "key.rotated"):
        detail |= {"scopes": key.scopes, "expires_ms": key.expires_ms, "permissions": key.permissions.given()}
    if key.replaces is not None and action == "key.rotated":
        detail["replaces"] = key.replaces
    return Event(action, actor, now_ms, tenant=key.tenant, subject=key.id, detail=detail)
