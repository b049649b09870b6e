"""The configuration file, looked at again and again: what it says about models, privacy, policies and rules
counts from then on; a broken one changes nothing and is complained of."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

from fabric.contracts.catalog import Catalog
from fabric.contracts.errors import ConfigError
from fabric.settings.load import load
from fabric.settings.settings import Settings

log = logging.getLogger(__name__)

#: Seconds between two looks. More sees a change later.
LOOK_S = 1.0


class Watch:
    """One thread. A file counts once two looks find it the same: an editor may be half way through it."""

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str] = os.environ,
        *,
        look_s: float = LOOK_S,
        wait_s: float = 0.0,
    ) -> None:
        """``wait_s``: how long a good change is held back, so that processes which must know it first do."""
        self._path = settings.config
        self._settings = settings
        self._environ = environ
        self._look_s = look_s
        self._wait_s = wait_s
        self._next_s = 0.0
        self._read = self._seen = _content(settings.config)
        self._ready: tuple[float, Settings] | None = None
        #: What is wrong with the file as it is now.
        self.problem: str | None = None
        #: Files that were refused, since the process began.
        self.failures = 0

    def look(self) -> Catalog | None:
        """The new catalogue, once, if there is one. Cheap: the file is read at most once in ``look_s``."""
        now = time.monotonic()
        if self._path is None or now < self._next_s:
            return None
        self._next_s = now + self._look_s
        found = _content(self._path)
        if found != self._seen:
            self._seen = found
        elif found != self._read:
            self._read = found
            self._try(now)
        if self._ready is None or now < self._ready[0]:
            return None
        settings, self._ready = self._ready[1], None
        return self._changed(settings)

    def _try(self, now: float) -> None:
        self._ready = None
        try:
            settings = load(self._path, self._environ)
        except ConfigError as error:
            self.failures += 1
            self.problem = error.message
            log.error("the configuration stays as it was: %s", error.message)
            return
        self.problem = None
        self._ready = now + self._wait_s, settings

    def _changed(self, settings: Settings) -> Catalog | None:
        before, self._settings = self._settings, settings
        others = sorted(
            name
            for name in Settings.model_fields
            if name != "catalog" and getattr(before, name) != getattr(settings, name)
        )
        if others:
            log.warning("a restart is needed for %s", ", ".join(others))
        return settings.catalog if settings.catalog != before.catalog else None


def _content(path: Path | None) -> bytes:
    """Of the file, as a digest; the same for every file that can't be read."""
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=16).digest() if path else b""
    except OSError:
        return b""
