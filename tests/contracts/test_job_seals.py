"""What is sealed of a job: who may read it, and what it belongs to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fabric.contracts.errors import BrokenSeal, LabelForbids
from fabric.contracts.job import JobSpec
from fabric.contracts.job_seals import SEALED_PIECE, HomeSeals, ReadingZones, WorkerSeals
from fabric.contracts.payload import Payload
from fabric.contracts.secret import Secrets
from fabric.contracts.zones import WorkerKeys

SECRETS = Secrets(["s" * 32])
HOME = HomeSeals(SECRETS)
LOCAL, CLOUD = (WorkerSeals(WorkerKeys.of(SECRETS, [zone])) for zone in ("local", "cloud"))
SPEC = JobSpec("job_1", "/v1/chat/completions", "m", tenant="acme")
EVERYWHERE = ReadingZones(frozenset({"local"}), frozenset({"cloud"}))
LOCALLY = ReadingZones(frozenset({"local"}), frozenset())


def test_all_that_may_read_a_text_read_the_same() -> None:
    sealed = HOME.payload(SPEC, b'{"a":1}', EVERYWHERE)
    assert LOCAL.request(SPEC, sealed) == CLOUD.request(SPEC, sealed) == HOME.opened_payload(SPEC, sealed) == b'{"a":1}'


def test_a_worker_of_the_cloud_cant_open_a_job_for_local_tiers() -> None:
    sealed = HOME.payload(SPEC, b'{"a":1}', LOCALLY)
    assert LOCAL.request(SPEC, sealed) == b'{"a":1}'
    with pytest.raises(LabelForbids):
        CLOUD.request(SPEC, sealed)


def test_of_a_redacted_job_each_tier_can_open_its_own_part_alone() -> None:
    plain = Payload(b"call +49", b"call <PHONE_1>").dump()
    sealed = HOME.payload(SPEC, plain, EVERYWHERE)
    parts = Payload.load(sealed)
    assert parts.redacted is not None
    assert LOCAL.request(SPEC, parts.of("cpu")) == b"call +49"
    assert CLOUD.request(SPEC, parts.of("cloud")) == b"call <PHONE_1>"
    with pytest.raises(LabelForbids):
        CLOUD.request(SPEC, parts.original)
    assert HOME.opened_payload(SPEC, sealed) == plain
    hidden = HOME.placeholders(SPEC, b"+49")
    assert HOME.opened_placeholders("acme", "job_1", hidden) == b"+49"
    assert (HOME.placeholders(SPEC, b""), HOME.opened_placeholders("acme", "job_1", b"")) == (b"", b"")


@pytest.mark.parametrize("other", [replace(SPEC, id="job_2"), replace(SPEC, tenant="else")])
def test_nothing_of_one_job_opens_as_anothers(other: JobSpec) -> None:
    of = (other.tenant, other.id)
    with pytest.raises(BrokenSeal):
        LOCAL.request(other, HOME.payload(SPEC, b"{}", LOCALLY))
    with pytest.raises(BrokenSeal):
        HOME.answer(*of, LOCAL.answer(SPEC, b"{}"))
    with pytest.raises(BrokenSeal):
        HOME.event(*of, LOCAL.piece(SPEC, b"{}"))
    with pytest.raises(BrokenSeal):
        HOME.opened_placeholders(*of, HOME.placeholders(SPEC, b"{}"))


def test_nothing_opens_as_something_else() -> None:
    with pytest.raises(BrokenSeal):
        HOME.answer("acme", "job_1", LOCAL.piece(SPEC, b"{}"))
    with pytest.raises(BrokenSeal):
        HOME.opened_placeholders("acme", "job_1", LOCAL.answer(SPEC, b"{}"))


def test_a_second_try_has_the_first_ones_text_and_gives_its_answer() -> None:
    second = replace(SPEC, id="job_2", hedge_of="job_1")
    assert LOCAL.request(second, HOME.payload(SPEC, b"{}", LOCALLY)) == b"{}"
    assert HOME.answer("acme", "job_1", LOCAL.answer(second, b"[]")) == b"[]"


def test_events_but_for_pieces_are_as_they_are() -> None:
    assert HOME.event("acme", "job_1", b'{"type":"queued"}') == b'{"type":"queued"}'
    assert LOCAL.piece(SPEC, b"{}").startswith(SEALED_PIECE)
    assert LOCAL.answer(SPEC, b"") == HOME.answer("acme", "job_1", b"") == b""
