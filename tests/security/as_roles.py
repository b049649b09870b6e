"""Runs every script of the store as a user of a role that calls it: ``pytest -p tests.security.as_roles tests/store``.

``SCRIPTS`` is who calls what. A script that several roles call is run by each of them in turn.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import redis

from fabric.contracts.errors import Unavailable
from fabric.security import redis_acl
from fabric.security.roles import GATEWAY, RECORDER, ROLES, SCHEDULER, WORKERS, Role
from fabric.store import AsyncStore, Command, Store

_G, _S, _R, _W = (GATEWAY,), (SCHEDULER,), (RECORDER,), (WORKERS[-1],)
SCRIPTS: dict[str, tuple[Role, ...]] = {
    **dict.fromkeys(("accept", "balances", "room"), _G + _S + _R),
    **dict.fromkeys(("watch", "replay", "drop", "erase"), _G),
    **dict.fromkeys(("cancel", "keep_head"), _G + _R),
    "keep_policy": _G + _S,
    **dict.fromkeys(("take", "put_back", "dispatch", "reject", "hedge", "reclaim", "rescue", "promote", "expire"), _S),
    **dict.fromkeys(("recall", "set_aside"), _S + _W),
    **dict.fromkeys(("claim", "commit", "emit", "speak", "fail", "heartbeat", "hand_back", "share_limit"), _W),
    **dict.fromkeys((f"provider_{name}" for name in ("enlist", "find", "release", "spent", "sweep")), _W),
    **dict.fromkeys(("count", "let_go", "forget", "decisions"), _R),
    **dict.fromkeys(("open_budgets", "raise_spent", "unlisted", "enlist", "warn_once"), _R),
}
PASSWORDS = {role: f"of-{role.name}" for role in ROLES}
_turns: dict[str, Iterator[Role]] = {name: itertools.cycle(roles) for name, roles in SCRIPTS.items()}
_known: set[tuple[str, int]] = set()
_clients: dict[tuple[str, Role], Any] = {}
_as_administrator, _async_as_administrator = Store.__call__, AsyncStore.__call__


def _client(options: dict[str, Any], role: Role) -> Any:
    """``options``: of the connections of somebody who may do everything."""
    place = {name: options[name] for name in ("path", "host", "port", "db") if name in options}
    kind = redis.UnixDomainSocketConnection if "path" in place else redis.Connection
    where = repr(place)
    with redis.Redis(connection_pool=redis.ConnectionPool(kind, **place)) as administrator:
        server = (where, int(administrator.info("server")["process_id"]))
        if server not in _known:
            for line in redis_acl.acl_file(PASSWORDS).splitlines()[1:]:
                _, name, *rules = _words(line)
                administrator.execute_command("ACL", "SETUSER", name, *rules)
            _known.add(server)
    if (where, role) not in _clients:
        named = {**place, "username": role.user, "password": PASSWORDS[role]}
        _clients[where, role] = redis.Redis(connection_pool=redis.ConnectionPool(kind, **named))
    return _clients[where, role]


def _words(line: str) -> list[str]:
    """A selector, in brackets, is one word."""
    words: list[str] = []
    for part in line.split(" "):
        if words and words[-1].startswith("(") and not words[-1].endswith(")"):
            words[-1] += f" {part}"
        else:
            words.append(part)
    return words


def _as_role(options: dict[str, Any], command: Command[Any]) -> Any:
    assert command.script is not None
    role = next(_turns[command.script.name])
    mine = object.__new__(Store)
    try:
        mine.redis = _client(options, role)
    except redis.RedisError as error:
        raise Unavailable("away") from error
    try:
        return _as_administrator(mine, command)
    except Unavailable as error:
        if "ermission" in str(error.__cause__):
            raise AssertionError(f"{role.name} may not run {command.script.name}: {error.__cause__}") from error
        raise


def _call(self: Store, command: Command[Any]) -> Any:
    if command.script is None:
        return _as_administrator(self, command)
    return _as_role(self.redis.connection_pool.connection_kwargs, command)


async def _call_async(self: AsyncStore, command: Command[Any]) -> Any:
    if command.script is None:
        return await _async_as_administrator(self, command)
    return _as_role(self.redis.connection_pool.connection_kwargs, command)


def pytest_configure() -> None:
    Store.__call__ = _call  # type: ignore[method-assign]
    AsyncStore.__call__ = _call_async  # type: ignore[method-assign]
