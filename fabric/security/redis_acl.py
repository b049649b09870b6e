"""The access list of Redis 7 and Valkey: a file of users for ``--aclfile``, and the URLs that name them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from urllib.parse import urlsplit, urlunsplit

from fabric.security.rights import Grant, grants_of, is_admin
from fabric.security.roles import Role


def acl_file(passwords: Mapping[Role, str]) -> str:
    """A line for each role. Of passwords it has SHA-256 alone, which is enough for 256 random bits."""
    lines = ["user default off sanitize-payload resetchannels resetkeys -@all"]
    lines += [_user(role, password) for role, password in passwords.items()]
    return "\n".join((*lines, ""))


def with_user(url: str, role: Role, password: str) -> str:
    """The URL of a place, for this user."""
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    # A unix socket has no place: `urlunsplit` would leave the slashes out.
    return urlunsplit(parts._replace(netloc=f"{role.user}:{password}@{place}"))


def _user(role: Role, password: str) -> str:
    digest = hashlib.sha256(password.encode()).hexdigest()
    head = f"user {role.user} on #{digest} sanitize-payload resetchannels"
    if is_admin(role):
        return f"{head} allkeys allchannels +@all"
    own, *selectors = grants_of(role)
    return " ".join((head, _rules(own), *(f"({_rules(grant)})" for grant in selectors)))


def _rules(grant: Grant) -> str:
    return " ".join(
        (
            "-@all",
            *(f"~{key}" for key in grant.keys.split()),
            *(f"&{channel}" for channel in grant.channels.split()),
            *(f"+{command}" for command in grant.commands.split()),
        )
    )
