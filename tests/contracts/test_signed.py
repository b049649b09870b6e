"""Who may send to workers is known by a key that workers don't hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.contracts.errors import ConfigError
from fabric.contracts.secret import Secrets
from fabric.contracts.signed import LENGTH, Signer, Verifier
from fabric.contracts.zones import WorkerKeys

OLD, NEW = "o" * 32, "n" * 32
SIGNER = Signer.of(Secrets([OLD]))


def test_what_was_signed_is_known() -> None:
    signature = SIGNER.sign(b"content")
    assert len(signature) == LENGTH
    assert WorkerKeys.of(Secrets([OLD]), ["local"]).schedulers.vouches(b"content", signature)


@given(st.binary(max_size=20), st.integers(0, LENGTH - 1), st.sampled_from("Ab-_9"))
def test_and_nothing_else(content: bytes, at: int, character: str) -> None:
    signature = SIGNER.sign(b"content")
    altered = signature[:at] + character + signature[at + 1 :]
    assert SIGNER.verifier.vouches(content, signature) is (content == b"content")
    assert SIGNER.verifier.vouches(b"content", altered) is (altered == signature)


@given(st.none() | st.integers() | st.text() | st.text("Aa-_0", min_size=LENGTH, max_size=LENGTH) | st.binary())
def test_whatever_a_signature_is(signature: object) -> None:
    assert not SIGNER.verifier.vouches(b"content", signature)


def test_while_the_secret_is_changed_both_count() -> None:
    old, both, new = (Signer.of(Secrets(texts)) for texts in ([OLD], [NEW, OLD], [NEW]))
    for signer in (old, both, new):
        assert both.verifier.vouches(b"x", signer.sign(b"x"))
    assert new.verifier.vouches(b"x", both.sign(b"x")), "the first one signs"
    assert not new.verifier.vouches(b"x", old.sign(b"x")), "afterwards the old one is nobody's"


def test_keys_there_and_back() -> None:
    both = Signer.of(Secrets([NEW, OLD]))
    assert Signer.parse(both.dump()).verifier == both.verifier
    assert Verifier(both.verifier.publics) == both.verifier


def test_keys_arent_shown() -> None:
    private = SIGNER.dump().partition(":")[2]
    assert private not in repr(SIGNER)
    assert private not in WorkerKeys.of(Secrets([OLD]), ["local"]).dump()


@pytest.mark.parametrize("text", ["", "scheduler", "scheduler:AAAA", WorkerKeys.of(Secrets([OLD]), ["local"]).dump()])
def test_what_are_no_keys_of_a_scheduler(text: str) -> None:
    with pytest.raises(ConfigError, match="zone-keys") as refused:
        Signer.parse(text)
    assert "AAAA" not in str(refused.value)
