"""What ``/v1/usage`` and ``/v1/costs`` have in common: the query, whose rows may be seen, and pages of them."""

from __future__ import annotations

import base64
import binascii
import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import orjson
from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field

from fabric.contracts.catalog import TIERS
from fabric.contracts.errors import InvalidRequest, PermissionDenied
from fabric.contracts.job import ENDPOINTS
from fabric.gateway.caller import Caller
from fabric.gateway.gateway import Gateway
from fabric.gateway.parameters import bad_cursor, listed
from fabric.ledger import costs
from fabric.ledger.costs import GROUPS, Filter, Group, Mark

_PAGE, _PAGE_LIMIT = 100, 1_000
_AGO = re.compile(r"([0-9]{1,6})(m|h|d|w)")
_AGO_MS = {"m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_SECONDS = re.compile(r"[0-9]{1,11}")
_TIME = (
    "`2026-11-01`, `2026-11-01T12:00:00Z` (without a zone: UTC), seconds since the epoch, or how long ago: `30d`, `12h`"
)

Name = Annotated[str | None, Field(min_length=1, max_length=128)]


class SpanQuery(BaseModel):
    """Whose, where and when."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    since: Annotated[str | None, Field(description=f"From this hour on: {_TIME}.")] = None
    until: Annotated[str | None, Field(description="Up to this hour, without it; as `since`.")] = None
    tenant: Annotated[Name, Field(description="Another one than the caller's own is for `admin`.")] = None
    key: Annotated[Name, Field(description="A key's id.")] = None
    tag: Name = None
    model: Name = None
    deployment: Name = None
    tier: Name = None
    endpoint: Name = None


class SpendingQuery(SpanQuery):
    group_by: Annotated[list[str], Field(description=f"Some of {', '.join(GROUPS)}; commas may part them.")] = []
    limit: Annotated[int, Field(ge=1, le=_PAGE_LIMIT, description="Rows at most.")] = _PAGE
    cursor: Annotated[str | None, Field(max_length=4096, description="`next_cursor` of the page before.")] = None


Span = Annotated[SpanQuery, Query()]
Spending = Annotated[SpendingQuery, Query()]


async def spending_page(
    gateway: Gateway,
    caller: Caller,
    asked: SpendingQuery,
    shown: Callable[[costs.Row, Sequence[Group]], dict[str, Any]],
) -> dict[str, Any]:
    """One page of the list.

    Raises:
        InvalidRequest: a parameter is wrong; ``param`` names it.
        PermissionDenied: another tenant's, and the caller isn't an admin.
    """
    groups = _groups(asked.group_by)
    after = None if asked.cursor is None else _mark(asked.cursor, groups)
    which = wanted(caller, asked)
    rows, mark = await gateway.ledger.read(costs.grouped, which, groups, limit=asked.limit, after=after)
    return listed([shown(row, groups) for row in rows], _cursor(groups, mark) if mark else None)


def wanted(caller: Caller, asked: SpanQuery) -> Filter:
    """
    Raises:
        InvalidRequest: a parameter is wrong.
        PermissionDenied: another tenant's, and the caller isn't an admin.
    """
    tenant = asked.tenant
    if "admin" not in caller.scopes:
        if tenant not in (None, caller.tenant):
            message = "Another tenant's usage needs a key with the scope `admin`."
            raise PermissionDenied(message, param="tenant", code="insufficient_scope")
        tenant = caller.tenant
    now_ms = int(time.time() * 1000)
    since, until = moment_ms(asked.since, "since", now_ms), moment_ms(asked.until, "until", now_ms)
    if since is not None and until is not None and since > until:
        raise InvalidRequest("`since` is after `until`.", param="since")
    _one_of(asked.tier, TIERS, "tier")
    _one_of(asked.endpoint, ENDPOINTS, "endpoint")
    return Filter(
        since_ms=since,
        until_ms=until,
        tenant=tenant,
        key=asked.key,
        tag=asked.tag,
        model=asked.model,
        deployment=asked.deployment,
        tier=asked.tier,
        endpoint=asked.endpoint,
    )


def moment_ms(text: str | None, param: str, now_ms: int) -> int | None:
    """Milliseconds since the epoch.

    Raises:
        InvalidRequest: not a time.
    """
    if text is None:
        return None
    if ago := _AGO.fullmatch(text):
        return max(0, now_ms - int(ago[1]) * _AGO_MS[ago[2]])
    if _SECONDS.fullmatch(text):
        return int(text) * 1000
    try:
        # A plus sign that nobody has encoded arrives as a space.
        parsed = datetime.fromisoformat(text.replace(" ", "+") if "T" in text else text)
    except ValueError:
        raise InvalidRequest(f"`{param}` isn't a time: give {_TIME}.", param=param) from None
    return int((parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp() * 1000)


def _one_of(value: str | None, known: Sequence[str], param: str) -> None:
    if value is not None and value not in known:
        raise InvalidRequest(f"`{param}` is one of {', '.join(known)}.", param=param)


def _groups(asked: Sequence[str]) -> tuple[Group, ...]:
    names = [name for part in asked for name in part.split(",") if name]
    for name in names:
        _one_of(name, GROUPS, "group_by")
    return tuple(dict.fromkeys(names))  # type: ignore[arg-type]  # each one was looked at


def _cursor(groups: Sequence[Group], mark: Mark) -> str:
    return base64.urlsafe_b64encode(orjson.dumps([groups, mark])).decode().rstrip("=")


def _mark(cursor: str, groups: Sequence[Group]) -> Mark:
    try:
        said, mark = orjson.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (ValueError, TypeError, binascii.Error):
        raise bad_cursor() from None
    kinds = [int if name in ("day", "hour") else str for name in groups]
    if said != list(groups) or not isinstance(mark, list) or list(map(type, mark)) != kinds:
        raise bad_cursor()
    return tuple(mark)
