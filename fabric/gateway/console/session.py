"""Who looks at the console: a browser shows a signed cookie in place of the key that it logged in with.

The cookie names the key's id and when the session ends; it is useless for the API, and ends with the key.
"""

from __future__ import annotations

import base64
import binascii
import time
from urllib.parse import urlsplit

import orjson
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response

from fabric.contracts.errors import PermissionDenied
from fabric.contracts.key import Scope
from fabric.contracts.secret import Secrets, Tag
from fabric.gateway.access import NEEDS, require
from fabric.gateway.caller import CALLER, Caller
from fabric.gateway.keyring import Keyring

COOKIE = "fabric_console"
_PATH = "/console"
#: How long a browser may be silent before it has to log in again.
SESSION_S = 3_600
_COOKIE_CHARS = 512


class Sessions:
    def __init__(self, keyring: Keyring, secrets: Secrets) -> None:
        self._keyring = keyring
        self._secrets = secrets

    async def caller(self, request: Request) -> Caller | None:
        """Who has logged in; ``None``: nobody, or their session or key has ended. Raises ``Unavailable``."""
        if await self._keyring.is_open():
            return await self._keyring.caller(Headers())
        key_id = self._key_id(request.cookies.get(COOKIE, ""))
        return None if key_id is None else self._keyring.holder(key_id)

    def still(self, caller: Caller) -> bool:
        """Whether somebody who was let in would be let in again."""
        return caller.key_id is None or self._keyring.holder(caller.key_id) is not None

    async def log_in(self, key: str) -> Caller:
        """
        Raises:
            NotAuthenticated: the key isn't known, or has ended.
            Unavailable: that can't be told while the ledger is away.
        """
        return await self._keyring.caller(Headers({"authorization": f"Bearer {key.strip()}"}))

    def remember(self, response: Response, caller: Caller, *, secure: bool) -> None:
        """The session goes on for another ``SESSION_S``."""
        if caller.key_id is None:
            return
        said = orjson.dumps([caller.key_id, int(time.time()) + SESSION_S])
        tag = self._secrets.tag("session", said)
        value = f"{_text(said)}.{tag.secret_id}.{_text(tag.value)}"
        response.set_cookie(
            COOKIE, value, max_age=SESSION_S, path=_PATH, secure=secure, httponly=True, samesite="strict"
        )

    def forget(self, response: Response) -> None:
        response.delete_cookie(COOKIE, path=_PATH, httponly=True, samesite="strict")

    def _key_id(self, cookie: str) -> str | None:
        try:
            said, secret_id, tag = cookie[:_COOKIE_CHARS].split(".")
            raw, value = _bytes(said), _bytes(tag)
        except (ValueError, binascii.Error):
            return None
        if not self._secrets.vouches("session", raw, Tag(secret_id, value)):
            return None
        key_id, ends_s = orjson.loads(raw)
        return str(key_id) if time.time() < ends_s else None


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text.encode() + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)


def caller_of(request: Request) -> Caller:
    caller: Caller = request.scope[CALLER]
    return caller


def needs(request: Request, method: str, route: str) -> Caller:
    """Who asks, if they may use that route of the API.

    Raises:
        PermissionDenied: none of the key's scopes leads there.
    """
    caller = caller_of(request)
    require(caller, NEEDS[method, route])
    return caller


def may(caller: Caller, method: str, route: str) -> bool:
    scopes: frozenset[Scope] = NEEDS[method, route]
    return "admin" in caller.scopes or not scopes.isdisjoint(caller.scopes)


def refuse_foreign(request: Request) -> None:
    """What changes something must come from the console's own pages.

    Browsers say from where a form was sent (``Sec-Fetch-Site``; older ones ``Origin``), and no page can make them lie.

    Raises:
        PermissionDenied: it came from another site, or from no browser.
    """
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        own = site == "same-origin"
    else:
        origin = request.headers.get("origin")
        own = origin is not None and urlsplit(origin).netloc == request.headers.get("host")
    if not own:
        raise PermissionDenied("This form wasn't sent from the console. Programs use the API.", code="foreign_form")
