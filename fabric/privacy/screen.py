"""What becomes of a job's label and text before it is accepted: found, raised, redacted. Pure.

Label = the strictest of what was asked for (with the key's floor) and what finds call for; it never goes down.
Where nothing would come of a search none is made.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from fabric.contracts.catalog import Catalog
from fabric.contracts.detector import BUILT_IN_ENTITIES
from fabric.contracts.job import JobSpec
from fabric.contracts.payload import Payload, dump_placeholders
from fabric.contracts.request import InferenceRequest
from fabric.contracts.terms import PRIVACY_LABELS, Privacy
from fabric.privacy.presidio import presidio_of
from fabric.privacy.reading import Reading, read
from fabric.privacy.redaction import NotRedactable, redact
from fabric.privacy.scanner import Scanner
from fabric.privacy.texts import images, joined, plain, token_ids

_RANK: dict[Privacy, int] = {label: rank for rank, label in enumerate(PRIVACY_LABELS)}
#: Catalogues whose scanners are kept: the one in force, and the one before.
_KEPT = 4


@dataclass(frozen=True, slots=True)
class Screened:
    """A job that may be accepted. ``placeholders``: as the record keeps them; empty where none were needed."""

    spec: JobSpec
    payload: bytes
    placeholders: bytes = b""


class Screen:
    """One catalogue's rules for texts. The scanner is made when the first text is to be searched."""

    def __init__(self, catalog: Catalog) -> None:
        self._privacy = catalog.privacy
        self._detectors = catalog.privacy.detectors
        self._raise_to: dict[str, Privacy] = {}
        for one in self._detectors:
            if one.raise_to is not None:
                self._raise_to[one.entity] = stricter(self._raise_to.get(one.entity, one.raise_to), one.raise_to)
        self._kept = frozenset(one.entity for one in self._detectors if not one.redact)
        self._everything = frozenset(BUILT_IN_ENTITIES).union(one.entity for one in self._detectors)
        self._presidio = presidio_of(catalog.privacy)
        self._named: dict[str, list[str]] = {}
        for one in self._detectors:
            if one.presidio is not None:
                self._named.setdefault(one.presidio, []).append(one.entity)
        # A text in which ``entities`` stands for something else costs a search, no more.
        read = any(rule.when is not None and "entities" in rule.when for rule in catalog.rules)
        self._always = read or bool(self._raise_to)
        self._scanner: Scanner | None = None

    @property
    def scanner(self) -> Scanner:
        if self._scanner is None:
            self._scanner = Scanner(self._detectors)
        return self._scanner

    @property
    def slow(self) -> bool:
        """Whether a search takes milliseconds, whatever the text: then it isn't one for an event loop."""
        return self._presidio is not None

    def looks(self, label: Privacy) -> bool:
        """Whether texts of jobs with this label are searched."""
        return self._always or self._privacy.of(label).redact

    def screened(self, spec: JobSpec, request: InferenceRequest) -> Screened:
        """Never raises over a text: what can't be searched counts as if everything had been found in it."""
        if not self.looks(spec.privacy):
            return Screened(spec, request.payload())
        # ``kept`` entities count for labels, too, so the reading has them; they are left out of what is replaced.
        reading = read(self._presidio, self._named, request.body)
        fired = self._fired(request.body) | reading.names | reading.failed
        label = spec.privacy
        for entity in fired:
            label = stricter(label, self._raise_to.get(entity, label))
        raised_from = spec.privacy if label != spec.privacy else spec.raised_from
        spec = replace(spec, privacy=label, raised_from=raised_from, entities=tuple(sorted(fired)))
        if not self._privacy.of(label).redact:
            return Screened(spec, request.payload())
        return self._redacted(spec, request, fired, reading)

    def _fired(self, body: dict[str, Any]) -> frozenset[str]:
        try:
            text = joined(body)
            fired = frozenset(("image",)) if images(body) else frozenset()
            for version in (text, plain(text)):
                if version is not None:
                    fired = fired.union(*self.scanner.names(version.encode()))
            if not token_ids(body):
                return fired
        except Exception:  # noqa: BLE001, S110 - a detector that errors counts as one that fired
            pass
        return self._everything

    def _redacted(self, spec: JobSpec, request: InferenceRequest, fired: frozenset[str], reading: Reading) -> Screened:
        """Vouched for, or not: then the job stays away from the cloud."""
        if not fired - self._kept:
            return Screened(replace(spec, redacted=True), request.payload())
        if "image" in fired:
            return Screened(spec, request.payload())
        try:
            body, placeholders = redact(request.body, self.scanner, self._kept, reading.without(self._kept))
        except NotRedactable:
            return Screened(spec, request.payload())
        except Exception:  # noqa: BLE001 - as above
            return Screened(spec, request.payload())
        payload = Payload(request.payload(), replace(request, body=body).payload())
        return Screened(replace(spec, redacted=True), payload.dump(), dump_placeholders(placeholders))


def stricter(one: Privacy, other: Privacy) -> Privacy:
    return one if _RANK[one] >= _RANK[other] else other


_screens: dict[int, tuple[Catalog, Screen]] = {}


def screen_of(catalog: Catalog) -> Screen:
    """Made once per catalogue."""
    known = _screens.get(id(catalog))
    if known is not None and known[0] is catalog:
        return known[1]
    while len(_screens) >= _KEPT:
        _screens.pop(next(iter(_screens)), None)
    screen = Screen(catalog)
    _screens[id(catalog)] = (catalog, screen)
    return screen
