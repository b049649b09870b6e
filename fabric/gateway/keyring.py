"""The keys that this process knows: a copy of the ledger's, so that no request waits for the ledger.

The copy is brought up to date twice a second, and at once when an unknown key comes. A key that was revoked
is refused everywhere within that time. While the ledger is away the copy counts as it is; what isn't in it
can't be judged (503). The fabric is open until the first key is made, and never again after that.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable

from starlette.datastructures import Headers

from fabric.contracts.errors import NotAuthenticated, Unavailable, where
from fabric.contracts.key import ALL_SCOPES, well_formed
from fabric.contracts.secret import Secrets
from fabric.gateway.caller import Caller
from fabric.gateway.ledger_threads import LedgerThreads
from fabric.ledger import keys
from fabric.ledger.keys import Key

log = logging.getLogger(__name__)

#: Time between two looks at the ledger. A revocation takes this long at most, and the time of a look.
LOOK_S = 0.5
#: Unknown keys make it look sooner, but not more often than this.
_SOONEST_S = 0.1
#: How long a request with an unknown key waits for the ledger.
_WAIT_S = 1.5
_BEARER = "bearer "

#: Who comes with a key, and when that ends (seconds since the epoch).
_Found = tuple[Caller, float]
_NOBODY: _Found = (Caller(tenant="default", scopes=ALL_SCOPES), float("inf"))
#: Keys that are refused without another look. More cost memory, less cost looks.
_STRANGERS = 4_096
_GIVE_ONE = "Give an API key, as `Authorization: Bearer fab_…`; `fabric keys create` makes one."


class Keyring:
    def __init__(
        self,
        ledger: LedgerThreads,
        secrets: Secrets,
        *,
        first_use: Callable[[str], None],
        may_be_open: bool = True,
        look_s: float = LOOK_S,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._ledger = ledger
        self._digests = secrets.digests
        self._secrets = secrets
        self._first_use = first_use
        self._may_be_open = may_be_open
        self._look_s = look_s
        self._now_s = now_s
        #: By the keyed hash of the key.
        self._known: dict[bytes, _Found] = {}
        self._digest_of: dict[str, bytes] = {}
        self._unused: set[str] = set()
        self._refused: set[str] = set()
        self._revision = 0
        self._open: bool | None = None
        self._looked_s = float("-inf")
        #: One look at a time: an older answer must not come after a newer one.
        self._turn = asyncio.Lock()
        self._next: asyncio.Task[bool] | None = None
        #: Keyed hashes of keys that weren't there when they were shown. A key is shown to its holder after it is
        #: stored, so what wasn't there then never will be.
        self._strangers: set[bytes] = set()

    async def caller(self, headers: Headers) -> Caller:
        """Who asks. A key that is known costs one keyed hash and one look into a table.

        The key is compared by that hash alone: how long it takes says nothing about keys that there are.

        Raises:
            NotAuthenticated: no key, or one that isn't known, has expired or was revoked.
            Unavailable: that can't be told while the ledger is away.
        """
        key = _bearer(headers)
        found = self._find(key) if key is not None and self._known else None
        if found is None:
            found = await self._looked_for(key)
        caller, ends_s = found
        if self._now_s() >= ends_s:
            raise NotAuthenticated("The API key has expired; `fabric keys create` or `rotate` makes a new one.")
        if self._unused and caller.key_id in self._unused:
            self._unused.remove(caller.key_id)
            self._first_use(caller.key_id)
        return caller

    async def is_open(self) -> bool:
        """Whether nobody needs a key. Raises ``Unavailable`` while that can't be told."""
        await self._unless_open()
        return bool(self._open)

    def holder(self, key_id: str) -> Caller | None:
        """Who holds a key that was shown before; ``None`` when it has expired, was revoked or isn't known."""
        digest = self._digest_of.get(key_id)
        if digest is None:
            return None
        caller, ends_s = self._known[digest]
        return caller if self._now_s() < ends_s else None

    def _find(self, key: str) -> _Found | None:
        for digest in self._digests(key.encode("utf-8", "replace")):
            found = self._known.get(digest)
            if found is not None:
                return found
        return None

    async def _looked_for(self, key: str | None) -> _Found:
        """What the copy doesn't have: nobody at all while the fabric is open, or a key that was made just now."""
        await self._unless_open()
        if key is None or not well_formed(key):
            if self._open:
                return _NOBODY
            raise NotAuthenticated(_GIVE_ONE if key is None else "This is no API key of a fabric: is all of it there?")
        digest = self._digests(key.encode())[0]
        if digest not in self._strangers:
            looked = await self._look_soon()
            found = self._find(key)
            if found is not None:
                return found
            if looked:
                if len(self._strangers) >= _STRANGERS:
                    self._strangers.clear()
                self._strangers.add(digest)
            elif not self._open:
                raise Unavailable("The API key can't be checked: the ledger (database) is away.", retry_after_s=1)
        if self._open:
            return _NOBODY
        raise NotAuthenticated("The API key isn't known here, or it was revoked.")

    async def _unless_open(self) -> None:
        """Before the first look nobody knows whether the fabric is open."""
        if self._open is None:
            await self._look_soon()
            if self._open is None:
                raise Unavailable(
                    "Whether an API key is needed can't be told: the ledger (database) is away.", retry_after_s=1
                )

    async def _look_soon(self) -> bool:
        """Whether a look that began after this call has come back. Those who ask together share one."""
        if self._next is None:
            self._next = asyncio.create_task(self._look_next())
        looking = self._next
        await asyncio.wait([looking], timeout=_WAIT_S)
        return looking.done() and looking.result()

    async def _look_next(self) -> bool:
        await asyncio.sleep(max(0.0, self._looked_s + _SOONEST_S - time.monotonic()))
        async with self._turn:
            self._next = None  # who asks from here on wants a later one
            return await self._look()

    async def run(self) -> None:
        """Keeps the copy up to date, until cancelled."""
        while True:
            async with self._turn:
                await self._look()
            await asyncio.sleep(self._look_s)

    async def _look(self) -> bool:
        """Whether the ledger answered."""
        self._looked_s = time.monotonic()
        try:
            self._learn(await self._ledger.read(keys.changed, self._revision))
            if self._open is None:
                closed = not self._may_be_open or await self._ledger.read(keys.some)
                self._open = not closed
        except Unavailable:
            return False
        except Exception as error:  # noqa: BLE001 - a copy that is never brought up to date again would be worse
            log.error("the keys can't be read: %s%s", type(error).__name__, where(error))
            return False
        return True

    def _learn(self, changed: Iterable[Key]) -> None:
        for key in changed:
            self._revision = key.revision
            if self._open:
                log.info("the first API key was made: every request needs one from here on")
            self._open = False
            self._forget(key.id)
            if not key.genuine(self._secrets):
                self._refuse(key)
            elif key.revoked_ms is None:
                ends_s = float("inf") if key.expires_ms is None else key.expires_ms / 1000
                caller = Caller(key.tenant, key.id, frozenset(key.scopes), key.permissions)
                self._known[key.digest] = (caller, ends_s)
                self._digest_of[key.id] = key.digest
                if key.first_used_ms is None:
                    self._unused.add(key.id)

    def _forget(self, key_id: str) -> None:
        digest = self._digest_of.pop(key_id, None)
        if digest is not None:
            del self._known[digest]
        self._unused.discard(key_id)

    def _refuse(self, key: Key) -> None:
        if key.id in self._refused:
            return
        self._refused.add(key.id)
        if key.secret_id in self._secrets:
            log.error("%s is refused: its row was changed by somebody without the fabric's secret", key.id)
        else:
            log.error("%s is refused: it was made under another secret; give this process the same one", key.id)


def _bearer(headers: Headers) -> str | None:
    given = headers.get("authorization")
    return given[7:].strip() if given is not None and given[:7].lower() == _BEARER else None
