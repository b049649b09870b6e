"""Trust zones: who can open what, and what becomes of envelopes that were altered."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.contracts import named_keys, zones
from fabric.contracts.errors import BrokenSeal, ConfigError
from fabric.contracts.secret import Secrets
from fabric.contracts.signed import Signer
from fabric.contracts.zones import Opener, Sender, WorkerKeys, ZoneKey, zone_keys

SECRETS = Secrets(["s" * 32])
OTHERS = Secrets(["o" * 32])
NAMES = ("home", "local", "cloud", "eu")
OPENERS = {name: Opener(zone_keys(SECRETS, name)) for name in NAMES}
READERS = {name: zone_keys(SECRETS, name)[0].reader for name in NAMES}


@given(content=st.binary(max_size=5_000), of=st.binary(max_size=40), chosen=st.sets(st.sampled_from(NAMES), min_size=1))
def test_those_that_it_is_for_can_open_it_and_nobody_else(content: bytes, of: bytes, chosen: set[str]) -> None:
    envelope = Sender().seal_for(content, of, [READERS[name] for name in chosen])
    for name, opener in OPENERS.items():
        assert opener.reads(envelope) is (name in chosen)
        if name in chosen:
            assert opener.open(envelope, of) == content
        else:
            with pytest.raises(BrokenSeal):
                opener.open(envelope, of)


@given(content=st.binary(max_size=5_000), of=st.binary(max_size=40))
def test_one_reader(content: bytes, of: bytes) -> None:
    envelope = Sender().seal(content, of, READERS["home"])
    assert OPENERS["home"].open(envelope, of) == content
    assert content not in envelope or len(content) < 8
    for opener in (OPENERS["local"], Opener(zone_keys(OTHERS, "home"))):
        assert not opener.reads(envelope)
        with pytest.raises(BrokenSeal):
            opener.open(envelope, of)


@given(many=st.booleans(), data=st.data())
def test_no_byte_of_it_can_be_changed(many: bool, data: st.DataObject) -> None:
    sender, of = Sender(), b"job"
    readers = [READERS["home"], READERS["local"]]
    envelope = sender.seal_for(b"the text", of, readers) if many else sender.seal(b"the text", of, readers[0])
    place = data.draw(st.integers(0, len(envelope) - 1))
    altered = bytearray(envelope)
    altered[place] ^= data.draw(st.integers(1, 255))
    try:
        told = OPENERS["home"].open(bytes(altered), of)
    except BrokenSeal:
        return
    # Only what another zone needs of the head isn't looked at by this one.
    assert many
    assert told == b"the text"


@given(st.binary(max_size=300), st.sampled_from([b"", b"\x03", b"\x04", b"\x04\x01", b"\x04\xff"]))
def test_whatever_is_opened_one_error_comes_out(rest: bytes, start: bytes) -> None:
    held = READERS["home"].id
    for envelope in (start + rest, start + held + rest, start[:1] + b"\x01" + bytes(32) + held + rest):
        OPENERS["home"].reads(envelope)
        with pytest.raises(BrokenSeal):
            OPENERS["home"].open(envelope, b"")


def test_it_belongs_to_one_thing() -> None:
    envelope = Sender().seal_for(b"text", b"job 1", [READERS["local"]])
    with pytest.raises(BrokenSeal):
        OPENERS["local"].open(envelope, b"job 2")


def test_no_two_are_alike() -> None:
    sender = Sender()
    assert len({sender.seal(b"text", b"", READERS["home"]) for _ in range(100)}) == 100
    assert len({sender.seal_for(b"text", b"", [READERS["home"]]) for _ in range(100)}) == 100


def test_no_nonce_comes_twice_under_a_key_whichever_thread_seals() -> None:
    sender, reader = Sender(), READERS["home"]

    def seal(number: int) -> tuple[bytes, bytes]:
        if number % 2:
            envelope = sender.seal(b"text", b"", reader)
            return envelope[9:41], envelope[41:53]
        envelope = sender.seal_for(b"text", b"", [reader])
        return envelope[2:34], envelope[42:54]

    with ThreadPoolExecutor(8) as threads:
        seen = list(threads.map(seal, range(4_000)))
    assert len(set(seen)) == 4_000
    assert len({public for public, _ in seen}) == 1


def test_a_passing_key_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zones, "_AGE_S", 0.0)
    sender = Sender()
    assert len({sender.seal(b"", b"", READERS["home"])[9:41] for _ in range(5)}) == 5


def test_a_reader_keeps_few_senders_in_mind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zones, "_SENDERS", 3)
    opener = Opener(zone_keys(SECRETS, "home"))
    envelopes = [Sender().seal(b"text", b"", READERS["home"]) for _ in range(10)]
    for _ in range(2):
        assert [opener.open(envelope, b"") for envelope in envelopes] == [b"text"] * 10
    assert len(opener._agreed) == 3


class TestAnotherSecret:
    def test_what_was_sealed_under_the_old_one_opens_while_both_count(self) -> None:
        envelope = Sender().seal_for(b"text", b"", [READERS["local"]])
        both = Secrets(["n" * 32, "s" * 32])
        assert Opener(zone_keys(both, "local")).open(envelope, b"") == b"text"
        assert zone_keys(both, "local")[0] == zone_keys(Secrets(["n" * 32]), "local")[0]
        assert WorkerKeys.of(both, ["local"]).home == zone_keys(Secrets(["n" * 32]), "home")[0].reader

    def test_not_any_more_once_it_is_gone(self) -> None:
        envelope = Sender().seal_for(b"text", b"", [READERS["local"]])
        with pytest.raises(BrokenSeal):
            Opener(zone_keys(Secrets(["n" * 32]), "local")).open(envelope, b"")


class TestWorkerKeys:
    def test_there_and_back(self) -> None:
        keys = WorkerKeys.of(Secrets(["n" * 32, "s" * 32]), ["local", "eu", "local"])
        assert WorkerKeys.parse(keys.dump()) == keys
        assert [key.zone for key in keys.keys] == ["eu", "eu", "local", "local"]
        assert keys.zones == {"eu", "local"}
        assert len(keys.schedulers.publics) == 2

    def test_those_of_an_earlier_version_are_named(self) -> None:
        parts = WorkerKeys.of(SECRETS, ["local"]).dump().split(",")
        with pytest.raises(ConfigError, match="earlier version"):
            WorkerKeys.parse(",".join(part for part in parts if not part.startswith("scheduler:")))

    def test_they_sign_nothing(self) -> None:
        """What a worker holds of the scheduler's is no private key of it."""
        held = dict(named_keys.parse(WorkerKeys.of(SECRETS, ["local"]).dump()))
        assert Signer([held["scheduler"]]).verifier != Signer.of(SECRETS).verifier
        assert held["scheduler"] in Signer.of(SECRETS).verifier.publics

    def test_they_arent_shown(self) -> None:
        keys = WorkerKeys.of(SECRETS, ["local"])
        private = keys.keys[0].private
        assert repr(private) not in repr(keys)
        assert private.hex() not in repr(keys)

    def test_they_open_no_answer(self) -> None:
        keys = WorkerKeys.of(SECRETS, ["local"])
        envelope = Sender().seal(b"answer", b"", keys.home)
        with pytest.raises(BrokenSeal):
            Opener(keys.keys).open(envelope, b"")

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "local",
            "home:" + "A" * 43,
            "local:" + "A" * 43 + ",home:" + "A" * 43,
            "home:" + "A" * 43 + ",local:" + "A" * 42,
            "home:" + "A" * 43 + ",local:" + "A" * 40 + "%%%",
            "home:" + "A" * 43 + ",local",
            "home:" + "A" * 43 + ",home:" + "A" * 43,
        ],
    )
    def test_what_cant_be_read_is_said_without_being_shown(self, text: str) -> None:
        with pytest.raises(ConfigError, match="zone-keys") as refused:
            WorkerKeys.parse(text)
        assert "AAAA" not in str(refused.value)


def test_zones_of_one_secret_have_different_keys() -> None:
    assert len({key.private for name in NAMES for key in zone_keys(SECRETS, name)}) == len(NAMES)
    assert zone_keys(SECRETS, "local") == [ZoneKey("local", zone_keys(SECRETS, "local")[0].private)]
