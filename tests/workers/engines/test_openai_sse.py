"""Server-sent events: the same payloads, however the network cuts the bytes."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workers.engines.sse import EventParser, TooLong

#: Examples may take long on a busy machine.
PATIENT = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
LINES = st.lists(
    st.binary(max_size=20).map(lambda b: b.replace(b"\r", b"").replace(b"\n", b"")), min_size=1, max_size=3
)


def parse(data: bytes, cuts: list[int]) -> list[bytes]:
    parser = EventParser(10_000)
    events = []
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, end in pairwise(edges):
        events += parser.feed(data[start:end])
    return events + parser.end()


@PATIENT
@given(
    st.lists(LINES, max_size=5), st.sampled_from([b"\n", b"\r\n", b"\r"]), st.lists(st.integers(0, 200), max_size=20)
)
def test_payloads_survive_any_cut_and_any_line_end(events: list[list[bytes]], newline: bytes, cuts: list[int]) -> None:
    data = b"".join(b"".join(b"data: " + line + newline for line in lines) + newline for lines in events)
    assert parse(data, cuts) == [b"\n".join(lines) for lines in events]


@pytest.mark.parametrize(
    ("data", "events"),
    [
        (b"data:a\n\n", [b"a"]),
        (b"data: a\n\n", [b"a"]),
        (b"data:  a\n\n", [b" a"]),
        (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
        (b": comment\n\ndata: a\n\n", [b"a"]),
        (b"event: ping\nid: 3\nretry: 10\ndata: a\n\n", [b"a"]),
        (b"event: nothing\n\n", []),
        (b"\n\n\ndata: a\n\n\n\n", [b"a"]),
        (b"data: [DONE]", [b"[DONE]"]),
        (b"data: [DONE]\n", [b"[DONE]"]),
        (b"", []),
    ],
)
def test_forms_of_events(data: bytes, events: list[bytes]) -> None:
    assert parse(data, []) == events
    assert parse(data, list(range(len(data)))) == events


@pytest.mark.parametrize("data", [b"x" * 200, b"data: " + b"x" * 200, b"data: " + b"x" * 60 + b"\ndata: " + b"x" * 60])
def test_an_event_has_a_limit(data: bytes) -> None:
    with pytest.raises(TooLong):
        EventParser(100).feed(data)
