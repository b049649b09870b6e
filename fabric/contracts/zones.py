"""Trust zones: content is sealed for those who may read it, and needs nobody's secret to be sealed.

A zone is an X25519 key pair. What is sealed for it opens with its private key alone, so whoever runs jobs of one zone
can't read those of another, whatever else of the fabric is in their hands. Two kinds of envelopes::

    \\x03 | id of the zone's key (8) | sender (32) | nonce (12) | content and tag (n + 16)
    \\x04 | how many (1) | sender (32) | for each zone: id (8), nonce (12), the data key, wrapped (48) | content and tag

The first is for one reader. The second has a data key of its own and lets any of several zones read it: without its
head nothing opens any more. The sealing key is what X25519 makes of the sender's passing key and the zone's, through
HKDF-SHA256 (RFC 5869) over both public keys. A sender uses one passing key for many envelopes, since an agreement
costs more than all the rest, and counts them: no nonce comes twice under a key. Data keys are made by HMAC-SHA256 of
that number, with a secret that is as old as the passing key. HPKE (RFC 9180) does the same with an agreement for each
envelope, which would cost each job more than it may.

Pure but for random numbers. Microseconds: ``scripts/bench sealing``.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fabric.contracts import named_keys
from fabric.contracts.errors import BrokenSeal, ConfigError
from fabric.contracts.secret import Secrets
from fabric.contracts.signed import Signer, Verifier
from fabric.contracts.terms import HOME_ZONE, SCHEDULER

#: How envelopes begin.
ONE_READER, MANY_READERS = b"\x03", b"\x04"
_ID = 8
_PUBLIC = 32
_NONCE = 12
_TAG = 16
_KEY = 32
_WRAPPED = _ID + _NONCE + _KEY + _TAG
_ONE_HEAD = 1 + _ID + _PUBLIC + _NONCE
#: Each data key seals once.
_ONCE = bytes(_NONCE)
#: Seconds after which a sender takes another passing key.
_AGE_S = 3600.0
#: Senders that a reader keeps in mind: about as many as processes that seal, times hours of what waits.
_SENDERS = 4096

_ALTERED = "The content was altered since it was sealed, or belongs elsewhere."


class Reader(NamedTuple):
    """The public key of a zone, and by what it is known."""

    id: bytes
    public: bytes

    @classmethod
    def of(cls, public: bytes) -> Reader:
        return cls(hashlib.sha256(public).digest()[:_ID], public)


@dataclass(frozen=True, slots=True)
class ZoneKey:
    """The private key of a zone."""

    zone: str
    private: bytes = field(repr=False)

    @property
    def reader(self) -> Reader:
        return Reader.of(_public(X25519PrivateKey.from_private_bytes(self.private)))


def zone_keys(secrets: Secrets, zone: str) -> list[ZoneKey]:
    """One for each secret that counts, that of the one in use first."""
    return [ZoneKey(zone, key) for key in secrets.derivations("zone", zone.encode())]


@dataclass(frozen=True, slots=True)
class WorkerKeys:
    """What a worker holds: private keys of the zones whose jobs it runs, for whom it seals answers, and whose messages
    it takes."""

    keys: tuple[ZoneKey, ...]
    home: Reader
    schedulers: Verifier

    @classmethod
    def of(cls, secrets: Secrets, zones: Iterable[str]) -> WorkerKeys:
        keys = tuple(key for zone in sorted(set(zones)) for key in zone_keys(secrets, zone))
        return cls(keys, zone_keys(secrets, HOME_ZONE)[0].reader, Signer.of(secrets).verifier)

    @property
    def zones(self) -> frozenset[str]:
        return frozenset(key.zone for key in self.keys)

    def dump(self) -> str:
        """For ``FABRIC_ZONE_KEYS``: ``home:PUBLIC,scheduler:PUBLIC,…,ZONE:PRIVATE,…``."""
        public = [(HOME_ZONE, self.home.public), *((SCHEDULER, key) for key in self.schedulers.publics)]
        return named_keys.dump([*public, *((key.zone, key.private) for key in self.keys)])

    @classmethod
    def parse(cls, text: str) -> WorkerKeys:
        """
        Raises:
            ConfigError: it isn't what ``dump`` makes.
        """
        pairs = named_keys.parse(text)
        schedulers = [key for name, key in pairs if name == SCHEDULER]
        zones = [(name, key) for name, key in pairs[1:] if name != SCHEDULER]
        if pairs[0][0] != HOME_ZONE or not zones or any(name == HOME_ZONE for name, _ in zones):
            raise named_keys.unreadable()
        if not schedulers:
            raise ConfigError(
                "FABRIC_ZONE_KEYS says nothing of the scheduler's key, by which messages are known: it was made by an "
                "earlier version. Print it anew with `fabric security zone-keys`."
            )
        return cls(tuple(ZoneKey(*pair) for pair in zones), Reader.of(pairs[0][1]), Verifier(tuple(schedulers)))


class _Passing:
    """One passing key of a sender, and what it has agreed on with each reader."""

    __slots__ = ("_agreed", "_numbers", "_private", "_secret", "public", "until")

    def __init__(self) -> None:
        self._private = X25519PrivateKey.generate()
        self.public = _public(self._private)
        self._agreed: dict[bytes, AESGCM] = {}
        self._secret = os.urandom(_KEY)
        self._numbers = itertools.count()
        self.until = time.monotonic() + _AGE_S

    def number(self) -> bytes:
        """Of the next envelope: each is given out once, whichever thread asks."""
        return next(self._numbers).to_bytes(_NONCE, "big")

    def data_key(self, number: bytes) -> bytes:
        return hmac.digest(self._secret, number, "sha256")

    def key(self, reader: Reader) -> AESGCM:
        key = self._agreed.get(reader.public)
        if key is None:
            key = self._agreed[reader.public] = _agreed(self._private, self.public, reader.public, reader.public)
        return key


class Sender:
    """Seals for zones. For any thread of one process: a fork would count on from the same number."""

    def __init__(self) -> None:
        self._passing = _Passing()
        self._renewing = threading.Lock()

    def seal(self, content: bytes, of: bytes, reader: Reader) -> bytes:
        """``of``: what the content belongs to (``fabric.contracts.sealed.about``)."""
        passing = self._current()
        nonce = passing.number()
        sealed = passing.key(reader).encrypt(nonce, content, of)
        return b"".join((ONE_READER, reader.id, passing.public, nonce, sealed))

    def seal_for(self, content: bytes, of: bytes, readers: Sequence[Reader]) -> bytes:
        """For up to 255 zones."""
        passing = self._current()
        nonce = passing.number()
        key = passing.data_key(nonce)
        parts = [MANY_READERS, bytes((len(readers),)), passing.public]
        for reader in readers:
            parts += (reader.id, nonce, passing.key(reader).encrypt(nonce, key, of))
        parts.append(AESGCM(key).encrypt(_ONCE, content, of))
        return b"".join(parts)

    def _current(self) -> _Passing:
        passing = self._passing
        if time.monotonic() < passing.until:
            return passing
        with self._renewing:
            if self._passing is passing:
                self._passing = _Passing()
            return self._passing


class Opener:
    """Opens what was sealed for zones whose private keys it holds. For any thread."""

    def __init__(self, keys: Iterable[ZoneKey]) -> None:
        self._keys = {key.reader.id: (X25519PrivateKey.from_private_bytes(key.private), key.reader) for key in keys}
        self._agreed: OrderedDict[bytes, AESGCM] = OrderedDict()

    def reads(self, envelope: bytes) -> bool:
        """Whether it is sealed for one of these zones."""
        return (
            self._wrapped(envelope) is not None if envelope[:1] == MANY_READERS else envelope[1 : 1 + _ID] in self._keys
        )

    def open(self, envelope: bytes, of: bytes) -> bytes:
        """
        Raises:
            BrokenSeal: it isn't sealed, not for these zones, was altered, or belongs elsewhere.
        """
        try:
            if envelope[:1] == ONE_READER and envelope[1 : 1 + _ID] in self._keys:
                sender, nonce = envelope[1 + _ID : 1 + _ID + _PUBLIC], envelope[_ONE_HEAD - _NONCE : _ONE_HEAD]
                return self._key(envelope[1 : 1 + _ID], sender).decrypt(nonce, envelope[_ONE_HEAD:], of)
            if envelope[:1] == MANY_READERS and (wrapped := self._wrapped(envelope)) is not None:
                key_id, nonce, sealed_key = wrapped
                key = self._key(key_id, envelope[2 : 2 + _PUBLIC]).decrypt(nonce, sealed_key, of)
                return AESGCM(key).decrypt(_ONCE, envelope[2 + _PUBLIC + envelope[1] * _WRAPPED :], of)
        except (InvalidTag, ValueError):
            raise BrokenSeal(_ALTERED) from None
        raise BrokenSeal(
            "The content isn't sealed for this process: its zone, or the secret that its key is of, is another."
        )

    def _wrapped(self, envelope: bytes) -> tuple[bytes, bytes, bytes] | None:
        """Id of a key that is held, the nonce and the data key for it."""
        start = 2 + _PUBLIC
        if len(envelope) < start:
            return None
        for at in range(start, start + envelope[1] * _WRAPPED, _WRAPPED):
            key_id = envelope[at : at + _ID]
            if key_id in self._keys:
                return key_id, envelope[at + _ID : at + _ID + _NONCE], envelope[at + _ID + _NONCE : at + _WRAPPED]
        return None

    def _key(self, key_id: bytes, sender: bytes) -> AESGCM:
        key = self._agreed.get(key_id + sender)
        if key is None:
            private, reader = self._keys[key_id]
            key = self._agreed[key_id + sender] = _agreed(private, sender, reader.public, sender)
            if len(self._agreed) > _SENDERS:
                self._agreed.popitem(last=False)
        return key


def _agreed(private: X25519PrivateKey, sender: bytes, reader: bytes, other: bytes) -> AESGCM:
    """Raises ``ValueError`` where ``other`` is no public key of anybody."""
    shared = private.exchange(X25519PublicKey.from_public_bytes(other))
    kdf = HKDF(algorithm=SHA256(), length=_KEY, salt=None, info=b"fabric zone" + sender + reader)
    return AESGCM(kdf.derive(shared))


def _public(private: X25519PrivateKey) -> bytes:
    return private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
