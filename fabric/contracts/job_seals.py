"""What is sealed of a job, for whom, and what it belongs to: its tenant and its id.

==============  ============================================  =====================
what            for whom                                      sealed by
==============  ============================================  =====================
original        home, zones of local tiers that may have it    gateways, recorders
redacted        home, zones of the cloud that may have it      the same
placeholders    home                                           the same
pieces, answer  home                                           workers
batch answers   home                                           recorders
==============  ============================================  =====================

Where nothing was redacted, the original is for all zones that may have it. A second try (``hedge_of``) has the text of
the job that it is a try of, and its answer becomes that job's: both belong to that one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from fabric.contracts.errors import BrokenSeal, LabelForbids
from fabric.contracts.job import JobSpec
from fabric.contracts.payload import Payload
from fabric.contracts.sealed import Role, about
from fabric.contracts.secret import Secrets
from fabric.contracts.terms import HOME_ZONE
from fabric.contracts.zones import MANY_READERS, ONE_READER, Opener, Reader, Sender, WorkerKeys, zone_keys

#: How every envelope of a piece begins, and no event that is written in JSON.
SEALED_PIECE = ONE_READER


class ReadingZones(NamedTuple):
    """Zones whose workers may read a job's text: those of local tiers, and those of the cloud."""

    local: frozenset[str]
    cloud: frozenset[str]


class HomeSeals:
    """For those who hold the fabric's secret."""

    __slots__ = ("_home", "_opener", "_readers", "_secrets", "_sender")

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets
        keys = zone_keys(secrets, HOME_ZONE)
        self._home = keys[0].reader
        self._opener = Opener(keys)
        self._sender = Sender()
        self._readers: dict[str, Reader] = {}

    def payload(self, spec: JobSpec, payload: bytes, zones: ReadingZones) -> bytes:
        """``payload``: as ``Payload.dump`` makes it."""
        of = _of("payload", spec)
        parts = Payload.load(payload)
        if parts.redacted is None:
            return self._sender.seal_for(parts.original, of, self._for(zones.local | zones.cloud))
        return Payload(
            self._sender.seal_for(parts.original, of, self._for(zones.local)),
            self._sender.seal_for(parts.redacted, of, self._for(zones.cloud)),
        ).dump()

    def opened_payload(self, spec: JobSpec, sealed: bytes) -> bytes:
        """What ``payload`` was given. Raises ``BrokenSeal``."""
        of = _of("payload", spec)
        parts = Payload.load(sealed)
        redacted = None if parts.redacted is None else self._opener.open(parts.redacted, of)
        return Payload(self._opener.open(parts.original, of), redacted).dump()

    def placeholders(self, spec: JobSpec, placeholders: bytes) -> bytes:
        return self._sender.seal(placeholders, _of("placeholders", spec), self._home) if placeholders else b""

    def opened_placeholders(self, tenant: str, job_id: str, sealed: bytes) -> bytes:
        """Raises ``BrokenSeal``."""
        return self._opener.open(sealed, about("placeholders", tenant, job_id)) if sealed else b""

    def event(self, tenant: str, job_id: str, body: bytes) -> bytes:
        """An event of a job's log; of those only pieces of answers are sealed. Raises ``BrokenSeal``."""
        if not body.startswith(SEALED_PIECE):
            return body
        return self._opener.open(body, about("piece", tenant, job_id))

    def answer(self, tenant: str, job_id: str, sealed: bytes) -> bytes:
        """Raises ``BrokenSeal``."""
        return self._opener.open(sealed, about("answer", tenant, job_id)) if sealed else b""

    def line(self, batch_id: str, line_no: int, answer: bytes) -> bytes:
        """An answer as the ledger keeps it until its batch's file is written."""
        return self._sender.seal(answer, about("line", batch_id, str(line_no)), self._home)

    def opened_line(self, batch_id: str, line_no: int, sealed: bytes) -> bytes:
        """Raises ``BrokenSeal``."""
        return self._opener.open(sealed, about("line", batch_id, str(line_no)))

    def _for(self, zones: Iterable[str]) -> list[Reader]:
        return [self._home, *(self._reader(zone) for zone in sorted(zones))]

    def _reader(self, zone: str) -> Reader:
        reader = self._readers.get(zone)
        if reader is None:
            reader = self._readers[zone] = zone_keys(self._secrets, zone)[0].reader
        return reader


class WorkerSeals:
    """For a worker. It opens texts of its zones and nothing else, not even its own answers."""

    __slots__ = ("_home", "_opener", "_sender")

    def __init__(self, keys: WorkerKeys) -> None:
        self._opener = Opener(keys.keys)
        self._sender = Sender()
        self._home = keys.home

    def request(self, spec: JobSpec, sealed: bytes) -> bytes:
        """
        Raises:
            LabelForbids: it is sealed for other zones.
            BrokenSeal: it isn't sealed, was altered, or belongs to another job.
        """
        try:
            return self._opener.open(sealed, _of("payload", spec))
        except BrokenSeal:
            if sealed[:1] == MANY_READERS and not self._opener.reads(sealed):
                raise LabelForbids(
                    "The worker refused the job: its text isn't sealed for this worker's zone."
                ) from None
            raise

    def piece(self, spec: JobSpec, body: bytes) -> bytes:
        return self._sender.seal(body, _of("piece", spec), self._home)

    def answer(self, spec: JobSpec, body: bytes) -> bytes:
        return self._sender.seal(body, _of("answer", spec), self._home) if body else b""


def _of(role: Role, spec: JobSpec) -> bytes:
    return about(role, spec.tenant, spec.hedge_of or spec.id)
