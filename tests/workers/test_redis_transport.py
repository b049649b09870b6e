"""What Celery's Redis transport can make a message of."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.transport.virtual import Channel, Message

from workers.redis_transport import is_envelope

ENVELOPE: dict[str, Any] = {
    "body": "e30=",
    "content-encoding": "utf-8",
    "content-type": "application/json",
    "headers": {},
    "properties": {
        "body_encoding": "base64",
        "delivery_info": {"exchange": "", "routing_key": "q"},
        "delivery_tag": "tag",
    },
}


def test_an_envelope() -> None:
    assert is_envelope(json.dumps(ENVELOPE).encode(), b"q")
    assert not is_envelope(json.dumps(ENVELOPE).encode(), b"another")


@pytest.mark.parametrize(
    "item",
    [
        b"",
        b"\xff\xfe",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"{}",
        b'{"body": "x"}',
        b"[" * 100_000,
        b'{"__type__": "datetime", "__value__": "never"}',
    ],
)
def test_anything_else(item: bytes) -> None:
    assert not is_envelope(item, b"q")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("body",), None),
        (("body",), "abc"),
        (("properties", "body_encoding"), "rot13"),
        (("properties", "body_encoding"), None),
        (("headers",), None),
        (("properties",), {}),
        (("properties", "delivery_tag"), 3),
        (("properties", "delivery_info"), {"exchange": ""}),
        (("properties", "delivery_info"), None),
    ],
)
def test_an_envelope_with_one_thing_wrong(path: tuple[str, ...], value: Any) -> None:
    envelope = json.loads(json.dumps(ENVELOPE))
    inside = envelope
    for step in path[:-1]:
        inside = inside[step]
    inside[path[-1]] = value
    assert not is_envelope(json.dumps(envelope).encode(), b"q")


NAMES = (*ENVELOPE, *ENVELOPE["properties"], "exchange", "routing_key")
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner),
    max_leaves=12,
)


@given(st.one_of(st.binary(), values.map(lambda value: json.dumps(value).encode())))
def test_what_passes_can_be_made_a_message(item: bytes) -> None:
    if is_envelope(item, b"q"):
        channel = Channel.__new__(Channel)
        message = Message(json.loads(item), channel=channel)
        assert message.delivery_info["routing_key"] == "q"
