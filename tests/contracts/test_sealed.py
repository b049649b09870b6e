"""Sealed content: it opens where it belongs, as it was, and nowhere else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.contracts.errors import BrokenSeal
from fabric.contracts.sealed import HEAD, OVERHEAD, Seals, about
from fabric.contracts.secret import Secrets

OLD, NEW = "o" * 32, "n" * 32
SEALS = Seals(Secrets([OLD]))
OF = about("line", "batch_1", "7")


@given(st.binary(max_size=300))
def test_what_was_sealed_is_opened(content: bytes) -> None:
    envelope = SEALS.seal(content, OF)
    assert SEALS.open(envelope, OF) == content
    assert len(envelope) == len(content) + OVERHEAD
    assert len(content) < 8 or content not in envelope


def test_the_same_content_never_looks_the_same() -> None:
    assert len({SEALS.seal(b"yes", OF)[HEAD:] for _ in range(100)}) == 100


def test_no_bit_can_be_changed() -> None:
    envelope = SEALS.seal(b"pay 100", OF)
    for place in range(len(envelope)):
        for bit in (1, 128):
            altered = bytearray(envelope)
            altered[place] ^= bit
            with pytest.raises(BrokenSeal):
                SEALS.open(bytes(altered), OF)


@given(st.integers(0, OVERHEAD + 6))
def test_none_can_be_missing(length: int) -> None:
    with pytest.raises(BrokenSeal):
        SEALS.open(SEALS.seal(b"content", OF)[:length], OF)


def test_halves_of_two_envelopes_make_none() -> None:
    one, other = SEALS.seal(b"one", OF), SEALS.seal(b"two", OF)
    with pytest.raises(BrokenSeal):
        SEALS.open(one[:HEAD] + other[HEAD:], OF)


@pytest.mark.parametrize(
    "elsewhere",
    [about("line", "batch_1", "8"), about("line", "batch_2", "7"), about("file", "batch_1", "7"), about("line")],
)
def test_it_opens_only_where_it_belongs(elsewhere: bytes) -> None:
    with pytest.raises(BrokenSeal):
        SEALS.open(SEALS.seal(b"content", OF), elsewhere)


def test_names_cant_be_shifted_into_each_other() -> None:
    names = [("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ("", "abc"), ("2:ab", "c")]
    assert len({about("line", *name) for name in names}) == len(names)


def test_a_secret_changes_without_losing_what_was_sealed() -> None:
    before = SEALS.seal(b"content", OF)
    both = Seals(Secrets([NEW, OLD]))
    after = both.seal(b"content", OF)
    assert both.open(before, OF) == both.open(after, OF) == b"content"
    only_new = Seals(Secrets([NEW]))
    assert only_new.open(after, OF) == b"content"
    with pytest.raises(BrokenSeal, match="FABRIC_SECRET doesn't hold"):
        only_new.open(before, OF)


def test_errors_say_nothing_of_the_content() -> None:
    envelope = SEALS.seal(b"canary-4711", OF)
    with pytest.raises(BrokenSeal) as raised:
        SEALS.open(envelope, about("file", "canary-name"))
    assert "canary" not in str(raised.value.info)
    assert raised.value.__cause__ is None


def test_plain_content_is_no_envelope() -> None:
    with pytest.raises(BrokenSeal, match="isn't sealed"):
        SEALS.open(b'{"model": "small", "messages": [{"role": "user", "content": "' + b"x" * 200 + b'"}]}', OF)


def test_a_fingerprint_needs_the_secret() -> None:
    secrets = Secrets([OLD])
    assert secrets.fingerprint(b"a prompt") == Secrets([OLD]).fingerprint(b"a prompt")
    others = {secrets.fingerprint(b"another"), Secrets([NEW]).fingerprint(b"a prompt")}
    assert secrets.fingerprint(b"a prompt") not in others
    assert secrets.fingerprint(b"a prompt") != secrets.tag("content", b"a prompt").value.hex()[:32]


def test_a_fingerprint_stays_while_the_secret_is_changed() -> None:
    assert Secrets([NEW, OLD]).fingerprint(b"a prompt") == Secrets([OLD]).fingerprint(b"a prompt")
