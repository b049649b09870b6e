"""Query parameters and lists. A parameter that a route doesn't know is refused, not ignored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field

from fabric.contracts.errors import InvalidRequest
from fabric.contracts.ids import is_id

_PAGE = 20
_PAGE_LIMIT = 100


class _Parameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Nothing(_Parameters):
    pass


class PageParameters(_Parameters):
    limit: Annotated[int, Field(ge=1, le=_PAGE_LIMIT, description="Items at most.")] = _PAGE
    cursor: Annotated[str | None, Field(description="`next_cursor` of the page before.")] = None


class _After(_Parameters):
    limit: Annotated[int, Field(ge=1, le=_PAGE_LIMIT, description="Items at most.")] = _PAGE
    after: Annotated[str | None, Field(description="The id of the last item of the page before.")] = None


class _Files(_After):
    #: As OpenAI has it, where a page of files may be larger than any other.
    limit: Annotated[int, Field(ge=1, le=10_000, description="Items at most.")] = 10_000
    order: Annotated[Literal["asc", "desc"], Field(description="By the time of creation.")] = "desc"
    purpose: Annotated[str | None, Field(description="Only files of this purpose.")] = None


NoParameters = Annotated[_Nothing, Query()]
Page = Annotated[PageParameters, Query()]
AfterPage = Annotated[_After, Query()]
FilesPage = Annotated[_Files, Query()]


def listed(data: Sequence[Any], next_cursor: str | None = None) -> dict[str, Any]:
    """The fabric's lists: go on with ``cursor=next_cursor`` while there is one."""
    return {"object": "list", "data": data, "has_more": next_cursor is not None, "next_cursor": next_cursor}


def listed_after(data: Sequence[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """OpenAI's lists: go on with ``after=last_id`` while ``has_more``."""
    last_id = data[-1]["id"] if data else None
    return {
        "object": "list",
        "data": data,
        "has_more": has_more,
        "first_id": data[0]["id"] if data else None,
        "last_id": last_id,
        "next_cursor": last_id if has_more else None,
    }


def after_id(after: str | None, prefix: str) -> str | None:
    """
    Raises:
        InvalidRequest: not an id of that kind.
    """
    if after is not None and not is_id(after, prefix):
        raise InvalidRequest(f"`after` must be the id of a {prefix}.", param="after")
    return after


def bad_cursor() -> InvalidRequest:
    return InvalidRequest("`cursor` must be the `next_cursor` of an earlier page.", param="cursor")
